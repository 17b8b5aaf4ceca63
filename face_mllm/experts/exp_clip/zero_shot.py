"""Zero-shot expressions: faces and prompts through the same projection, compared by cosine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

import torch
from torch.nn import functional

from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.prompts import prompts
from face_mllm.features import FrozenClip

Ensemble = Literal["logits", "embeddings"]
Projection = Callable[[torch.Tensor], torch.Tensor]

OURS, PLAIN, UPSAMPLED = "exp_clip", "clip", "clip_upsampled"


def projections(head: ExpClipHead, seed: int = 0) -> dict[str, Projection]:
    """Exp-CLIP and its two controls.

    Returns:
        ``exp_clip`` the head; ``clip`` nothing at all; ``clip_upsampled`` an untrained head of the
        same shape, which tells the width of the space from what was learned in it.
    """
    untrained = ExpClipHead(head.clip_width, head.teacher_width, seed)
    return {OURS: head, PLAIN: lambda features: features, UPSAMPLED: untrained}


def class_logits(
    image: torch.Tensor,
    texts: Sequence[torch.Tensor],
    scale: float,
    ensemble: Ensemble = "logits",
) -> torch.Tensor:
    """Logits [N, classes] of projected features of any length.

    Args:
        image: [N, D].
        texts: one [prompts, D] a class.
        scale: inverse temperature.
        ensemble: ``logits`` averages a class's logits (the paper), ``embeddings`` its unit-length
            prompt embeddings, whose mean is then made unit length again (CLIP's own way).
    """
    image = functional.normalize(image, dim=-1)
    units = [functional.normalize(text, dim=-1) for text in texts]
    if ensemble == "embeddings":
        means = torch.stack([functional.normalize(text.mean(0), dim=-1) for text in units])
        return scale * image @ means.T
    return torch.stack([(scale * image @ text.T).mean(-1) for text in units], dim=-1)


def prompt_features(
    clip: FrozenClip, classes: Sequence[str], prompt_type: int
) -> list[torch.Tensor]:
    """CLIP's text features of each class's wordings, [prompts, D] a class, not normalised."""
    wordings = [prompts(prompt_type, name) for name in classes]
    embedded = clip.text_embeddings(list(chain.from_iterable(wordings))).float()
    return list(embedded.split([len(group) for group in wordings]))


@torch.inference_mode()
def zero_shot(
    projection: Projection,
    image: torch.Tensor,
    texts: Sequence[torch.Tensor],
    scale: float,
    ensemble: Ensemble = "logits",
) -> torch.Tensor:
    """Logits [N, classes]; prompts go through the projection as faces do.

    Args:
        projection: one of :func:`projections`.
        image: CLIP features [N, D] not normalised, or [N, frames, D] of clips, NaN where a clip
            is shorter: the mean of the projected, un-normalised frames stands for the clip.
        texts: of :func:`prompt_features`.
        scale: CLIP's inverse temperature.
        ensemble: see :func:`class_logits`.
    """
    projected = projection(image)
    if projected.dim() == 3:
        projected = projected.nanmean(1)
    return class_logits(projected, [projection(text) for text in texts], scale, ensemble)


def sample_frames(count: int, frames: int = 16, repeat_first: bool = False) -> list[int]:
    """Places of the frames that stand for a clip: the middles of equal stretches.

    Args:
        count: frames the clip has.
        frames: how many are wanted; a clip with no more gives all of them.
        repeat_first: the released code instead takes frame 0 of a clip with no more frames than
            wanted (repeated, which changes no mean).
    """
    if count <= frames:
        return [0] if repeat_first else list(range(count))
    return [int(count / frames * (part + 0.5)) for part in range(frames)]
