"""Experts beside the MLLM: small heads on a frozen CLIP, each usable on its own."""
