"""A multimodal LLM that sees faces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from face_mllm.chat import FaceMLLM

__all__ = ["FaceMLLM"]


def __getattr__(name: str) -> Any:
    """Import the heavy parts on first use, so that ``face-mllm --help`` stays quick."""
    if name == "FaceMLLM":
        from face_mllm.chat import FaceMLLM

        return FaceMLLM
    raise AttributeError(f"module 'face_mllm' has no attribute {name!r}")
