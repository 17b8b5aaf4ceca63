"""Losses of face-clip: CLIP's contrastive loss and masked losses on exact labels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.labels.expressions import EXPRESSIONS
from face_mllm.face_clip.config import LossConfig
from face_mllm.face_clip.labels import NO_EXPRESSION, LabelSpace, Targets

AGE_CENTRE, AGE_SCALE = 40.0, 20.0  # years; brings every regression target to about +-1
POSE_SCALE = 20.0  # degrees
INTENSITY_SCALE = 2.0


def contrastive_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3), several positives allowed.

    Args:
        image: [batch, D] embeddings, any length.
        text: [batch, D].
        logit_scale: log of the inverse temperature.
        same: [batch, batch] bool, symmetric with a true diagonal: captions that are equal;
            each row's target is spread evenly over them. None means every pair differs.
    """
    image = functional.normalize(image.float(), dim=-1)
    text = functional.normalize(text.float(), dim=-1)
    logits = logit_scale.exp() * image @ text.T
    if same is None:
        same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    wanted = same.float() / same.sum(1, keepdim=True)
    rows = functional.cross_entropy(logits, wanted)
    return 0.5 * (rows + functional.cross_entropy(logits.T, wanted))


class LabelHeads(nn.Module):
    """One linear layer from pooled features to every exact label; thrown away after training.

    Being linear, it makes the pooled feature hold each label in a form a linear probe can read.
    """

    unit_weight: torch.Tensor
    flag_weight: torch.Tensor

    def __init__(self, width: int, space: LabelSpace, positive_weight: Targets | None = None):
        super().__init__()
        units, flags = len(space.action_units), len(space.attributes)
        self.sizes = (units, units, len(EXPRESSIONS), flags, 1, 3)
        self.linear = nn.Linear(width, sum(self.sizes))
        weights = positive_weight or _even(units, flags)
        self.register_buffer("unit_weight", weights.active, persistent=False)
        self.register_buffer("flag_weight", weights.attributes, persistent=False)

    def losses(self, pooled: torch.Tensor, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the mean loss of each task over what is known in the batch (0 if nothing is)."""
        parts = self.linear(pooled.float()).split(self.sizes, dim=-1)
        intensity, active, expression, flags, age, pose = parts
        graded = _regression(intensity, targets.intensity / INTENSITY_SCALE)
        occurring = _binary(active, targets.active, self.unit_weight)
        wanted = (targets.age - AGE_CENTRE) / AGE_SCALE
        return {
            "action_unit": graded + occurring,
            "expression": _classes(expression, targets.expression),
            "attribute": _binary(flags, targets.attributes, self.flag_weight),
            "age": _interval(age[:, 0], wanted[:, 0], wanted[:, 1]),
            "head_pose": _regression(pose, targets.pose / POSE_SCALE),
        }


def _even(units: int, flags: int) -> Targets:
    nothing = torch.empty(0)
    ones = (torch.ones(units), torch.ones(flags))
    return Targets(nothing, ones[0], nothing, ones[1], nothing, nothing)


def positive_weights(targets: Targets) -> Targets:
    """Weight of positives per AU and attribute, sqrt(negatives / positives) within 1/4 to 4."""

    def weight(flags: torch.Tensor) -> torch.Tensor:
        positive = (flags == 1).sum(0).clamp_min(1)
        negative = (flags == 0).sum(0).clamp_min(1)
        return (negative / positive).sqrt().clamp(0.25, 4.0)

    weights = _even(targets.active.shape[1], targets.attributes.shape[1])
    return Targets(
        **{
            **weights.__dict__,
            "active": weight(targets.active),
            "attributes": weight(targets.attributes),
        }
    )


def total_loss(
    contrastive: torch.Tensor, tasks: dict[str, torch.Tensor], weights: LossConfig
) -> torch.Tensor:
    """Return the weighted sum that is minimised."""
    total = weights.contrastive * contrastive
    for name, value in tasks.items():
        total = total + getattr(weights, name) * value
    return total


def _masked_mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)


def _regression(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    known = ~wanted.isnan()
    filled = torch.where(known, wanted, 0.0)
    values = functional.smooth_l1_loss(predicted, filled, reduction="none", beta=0.25)
    return _masked_mean(values, known)


def _binary(logits: torch.Tensor, wanted: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    known = ~wanted.isnan()
    filled = torch.where(known, wanted, 0.0)
    values = functional.binary_cross_entropy_with_logits(
        logits, filled, pos_weight=positive, reduction="none"
    )
    return _masked_mean(values, known)


def _classes(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    known = wanted != NO_EXPRESSION
    values = functional.cross_entropy(logits, wanted.clamp_min(0), reduction="none")
    return _masked_mean(values, known)


def _interval(predicted: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Distance to the interval: an age band asks for nothing more exact than itself."""
    known = ~low.isnan()
    low, high = torch.where(known, low, 0.0), torch.where(known, high, 0.0)
    inside = torch.minimum(torch.maximum(predicted, low), high)
    values = functional.smooth_l1_loss(predicted, inside, reduction="none", beta=0.1)
    return _masked_mean(values, known)
