"""Exp-CLIP (Zhao et al., arXiv 2405.19100): a linear head that carries CLIP into an LLM's space."""
