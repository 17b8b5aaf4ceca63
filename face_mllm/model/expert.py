"""The expert token: one more token after a picture's image tokens."""

from __future__ import annotations

import torch
from torch import nn


class ExpertProjector(nn.Sequential):
    """LayerNorm, Linear, GELU, Linear from an expert's vector to the LLM's width.

    Experts differ in the scale of their vectors by orders of magnitude; the norm takes it out.
    """

    def __init__(self, width: int, llm_dim: int, hidden: int = 0) -> None:
        hidden = hidden or llm_dim
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, llm_dim)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype


def append_token(features: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Image tokens [F, T, H] and expert tokens [F, H] to [F, T + 1, H]."""
    return torch.cat([features, token[:, None].to(features.dtype)], 1)
