"""Hidden states of a frozen vision tower, as the MLLM's projector reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from data_pipeline.records import FaceRecord
from face_mllm.features.cache import (
    Columns,
    FeatureCache,
    face_features,
    model_identity,
    settings_identity,
)
from face_mllm.model.vision import image_tokens
from face_mllm.progress import Progress

STATES = "states"


class FrozenTower:
    """A tower whose states [tokens, channels] of a picture are a constant.

    Pictures run in groups of one fixed size, the last one filled up: kernels choose their order of
    sums by the batch's size, so a state would else depend, in its last bits, on how many pictures
    happened to be new. So a cached state equals the live one bit for bit.

    Args:
        tower: frozen; put into eval mode here. Its dtype is the states'.
        processor: the tower's image processor.
        layer: index into the tower's hidden states.
        select: ``patch`` or ``full``, as :func:`face_mllm.model.vision.image_tokens`.
        group: pictures a forward pass takes.
    """

    def __init__(
        self, tower: PreTrainedModel, processor: Any, layer: int, select: str, group: int = 16
    ) -> None:
        self.tower, self.processor = tower.eval(), processor
        self.layer, self.select, self.group = layer, select, group
        parameter = next(tower.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device

    @torch.no_grad()
    def states(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """States of upright RGB pictures, computed now: [N, tokens, channels] on the CPU."""
        starts = range(0, len(images), self.group)
        return torch.cat([self._group(images[at : at + self.group]) for at in starts])

    def _group(self, images: Sequence[Image.Image]) -> torch.Tensor:
        filled = [*images, *[images[-1]] * (self.group - len(images))]
        pixels = self.processor(filled, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.dtype)
        made = image_tokens(self.tower, pixels, self.layer, self.select)
        return made[: len(images)].cpu().contiguous()

    def identity(self) -> dict[str, Any]:
        """All that decides a state beside the picture: weights, processor, layer, dtype."""
        return {
            "tower": model_identity(self.tower),
            "processor": settings_identity(self.processor),
            "layer": self.layer,
            "select": self.select,
            "dtype": str(self.dtype),
        }

    def cache(self, root: Path | None = None) -> FeatureCache:
        """The cache of this tower's states; open it again in each process that reads."""
        return FeatureCache(self.identity(), root)

    def fill(
        self,
        cache: FeatureCache,
        records: Iterable[FaceRecord],
        progress: Progress | None = None,
    ) -> list[bytes]:
        """Compute the states that are not known; returns a key each record.

        ``cache.gather(keys)["states"]`` is [N, tokens, channels]; ``content_key(record)`` is the
        key of one record.
        """

        def compute(images: list[Image.Image]) -> Columns:
            return {STATES: self.states(images)}

        return face_features(cache, records, compute, batch=self.group, progress=progress)
