"""What an expert sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Look:
    """What an expert sees in N faces.

    Attributes:
        features: CLIP's embeddings [N, C].
        seen: what else its head reads, [N, ...].
        vectors: [N, D].
        logs: natural-log probabilities [N, K].
    """

    features: torch.Tensor
    seen: torch.Tensor | None
    vectors: torch.Tensor
    logs: torch.Tensor
