"""The terms of mask-FER's loss (arXiv 2408.10614, and the released code where the two differ).

Channels are dealt to classes in contiguous groups: with D channels and K classes a group has
c = D // K channels, class k owns channels [k c, k c + c), and the D - K c left over belong to none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional


def grouped(features: torch.Tensor, classes: int) -> torch.Tensor:
    """Deal channels to classes: [N, D] -> [N, classes, D // classes]."""
    channels = features.shape[-1] // classes
    if channels < 1:
        raise ValueError(f"{features.shape[-1]} channels cannot be dealt to {classes} classes")
    return features[:, : classes * channels].unflatten(-1, (classes, channels))


def separated_logits(
    features: torch.Tensor, classes: int, keep: torch.Tensor | None = None
) -> torch.Tensor:
    """Logit of a class = largest channel of its group, [N, classes].

    Args:
        features: [N, D] masked features.
        classes: K.
        keep: 0/1 of :func:`draw_channels`; a dropped channel counts as 0, which competes in the
            maximum. None keeps all.
    """
    groups = grouped(features, classes)
    return (groups if keep is None else groups * keep).amax(-1)


def draw_channels(
    classes: int,
    channels: int,
    share: float,
    generator: torch.Generator,
    samples: int = 1,
) -> torch.Tensor:
    """Draw which channels are kept: in every group exactly ``round(share * channels)`` are 0.

    Args:
        classes: K.
        channels: c, of one group.
        share: of a group's channels that are dropped; 10 of 73 in the paper's code.
        generator: seeded by (seed, step).
        samples: 1 for one mask that the batch shares.

    Returns:
        [samples, classes, channels] of 0.0 and 1.0.
    """
    dropped = round(share * channels)
    order = torch.rand(samples, classes, channels, generator=generator).argsort(-1)
    return (order >= dropped).float()


def separation_loss(
    features: torch.Tensor, targets: torch.Tensor, classes: int, keep: torch.Tensor | None
) -> torch.Tensor:
    """Cross entropy of the group maxima, raw and without temperature."""
    return functional.cross_entropy(separated_logits(features, classes, keep), targets)


def diversity_loss(
    features: torch.Tensor, classes: int, norm: Literal["code", "paper"] = "code"
) -> torch.Tensor:
    """1 - the mean group maximum over a group's size: each class keeps an open channel.

    No channel is dropped here and no label is used. The code averages over faces and classes; the
    paper's formula sums over classes, so its value is K times further from 1.
    """
    groups = grouped(features, classes)
    maxima = groups.amax(-1)
    mean = maxima.mean() if norm == "code" else maxima.sum(-1).mean()
    return 1 - mean / groups.shape[-1]
