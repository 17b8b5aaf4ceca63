"""A multimodal LLM that sees faces."""
