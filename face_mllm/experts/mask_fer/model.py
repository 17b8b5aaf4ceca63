"""The trained part of mask-FER: mask network, masked features, classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from face_mllm.errors import UserError
from face_mllm.experts.mask_fer.backbone import Match, PatchHeadMask, ResNetMask
from face_mllm.experts.mask_fer.config import LossSettings
from face_mllm.experts.mask_fer.losses import (
    diversity_loss,
    separated_logits,
    separation_loss,
)

LogitsFrom = Literal["fc", "separated", "mean"]


class MaskFer(nn.Module):
    """x = F * sigmoid(m), classified by a linear layer.

    Args:
        mask: makes m from pixels or tokens; None is the ablation x = F.
        width: of the frozen CLIP embedding F.
        classes: K.
        match: how m gets F's width.

    Raises:
        UserError: more classes than channels.
    """

    def __init__(
        self, mask: ResNetMask | PatchHeadMask | None, width: int, classes: int, match: str
    ) -> None:
        super().__init__()
        if classes > width:
            raise UserError(
                f"{classes} classes need at least as many channels; this CLIP has {width}",
                "use fewer classes or a wider CLIP",
            )
        self.classes, self.width = classes, width
        self.mask = mask
        self.match = Match(mask.width, width, match) if mask is not None else None
        self.fc = nn.Linear(width, classes)

    @property
    def channels(self) -> int:
        """Channels of one class's group."""
        return self.width // self.classes

    def masked(self, features: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Masked features x [N, D].

        Args:
            features: F [N, D], frozen and not normalised.
            seen: what the mask network reads: pixels or tokens; None without one.
        """
        if self.mask is None or self.match is None:
            return features
        mask = self.match(self.mask(seen))
        return features * torch.sigmoid(mask.to(features.dtype))

    def logits(self, x: torch.Tensor, source: LogitsFrom = "fc") -> torch.Tensor:
        """Class logits [N, K] of masked features.

        Args:
            x: [N, D].
            source: the classifier (the paper's code), the group maxima without dropping, or the
                mean of both.
        """
        if source == "fc":
            return self.fc(x)
        separated = separated_logits(x, self.classes)
        return separated if source == "separated" else (self.fc(x) + separated) / 2


@dataclass(frozen=True)
class Losses:
    """The terms of a step; ``total`` is minimised."""

    total: torch.Tensor
    classification: torch.Tensor
    separation: torch.Tensor
    diversity: torch.Tensor

    def numbers(self) -> dict[str, float]:
        """Plain numbers for the log."""
        return {name: value.item() for name, value in self.__dict__.items()}


def losses(
    model: MaskFer,
    x: torch.Tensor,
    targets: torch.Tensor,
    keep: torch.Tensor | None,
    weights: LossSettings,
) -> Losses:
    """CE(FC(x), y) + separation * l_sep + diversity * l_div.

    Args:
        model: its classifier and class count are used.
        x: masked features [N, D].
        targets: [N] class indices.
        keep: channels kept this step, see :func:`draw_channels`.
        weights: 1.5 and 5 in the paper.
    """
    classification = functional.cross_entropy(model.fc(x), targets)
    separation = separation_loss(x, targets, model.classes, keep)
    diversity = diversity_loss(x, model.classes, weights.div_norm)
    total = classification + weights.separation * separation + weights.diversity * diversity
    return Losses(total, classification, separation, diversity)
