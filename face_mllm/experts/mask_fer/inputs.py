"""What the model reads of a face: the frozen embedding F, and pixels or tokens for the mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from data_pipeline.records import FaceRecord
from face_mllm.experts.mask_fer.augment import draw_spoils, erase, spoil
from face_mllm.experts.mask_fer.config import AugmentSettings
from face_mllm.experts.mask_fer.faces import Pictures
from face_mllm.features import Columns, FeatureCache, FrozenClip
from face_mllm.progress import Progress

Read = tuple[torch.Tensor, torch.Tensor | None]  # F [N, D]; pixels, tokens or nothing


@dataclass(frozen=True)
class MaskEye:
    """What the mask network reads.

    Args:
        reads: ``pixels``, ``tokens`` of the frozen CLIP, or ``nothing``.
        size: side of its pixels.
        mean, std: their normalisation.
    """

    reads: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, scaled: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised pixels of squares in 0-1, resized to the network's side."""
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        pixels = (scaled - mean) / std
        if boxes is not None:
            pixels = erase(pixels, boxes)
        if pixels.shape[-1] != self.size:
            pixels = functional.interpolate(
                pixels, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        return pixels


class Inputs:
    """Batches of a set of faces, clean or spoilt.

    Args:
        faces: the faces.
        clip: frozen.
        eye: what the mask network reads.
        most_bytes: of decoded pictures kept.
        cache: folder of the feature cache; the user's if not given.
    """

    def __init__(
        self,
        faces: Sequence[FaceRecord],
        clip: FrozenClip,
        eye: MaskEye,
        most_bytes: float = 0.0,
        cache: Path | None = None,
    ) -> None:
        self.faces, self.clip, self.eye, self.cache = faces, clip, eye, cache
        self.pictures = Pictures(faces, clip, most_bytes)
        self.known: dict[bool, tuple[FeatureCache, list[bytes]]] = {}  # by mirrored or not

    def compute(self, mirror: bool, progress: Progress | None = None) -> None:
        """Have the frozen features of the clean pictures, or of their mirror images."""
        self.known[mirror] = self.clip.cached(
            self.faces,
            tokens=self.eye.reads == "tokens",
            mirror=mirror,
            root=self.cache,
            progress=progress,
        )

    def clean(self, rows: Sequence[int]) -> Read:
        """Faces as they are, for validation and use; needs ``compute(mirror=False)``."""
        return self._read(
            self._known(False, rows), lambda: self.eye.pixels(self.pictures[rows].float() / 255)
        )

    def spoilt(
        self, rows: Sequence[int], settings: AugmentSettings, generator: torch.Generator
    ) -> Read:
        """Faces spoilt for training.

        Where the frozen features were computed both ways they are looked up by the draw of the
        mirror; else CLIP sees the very picture that the mask network sees.
        """
        spoils = draw_spoils(len(rows), settings, generator)
        if self.known and self.eye.reads != "pixels":  # the pictures are not needed
            return self._read(self._lookup(rows, spoils.flip), torch.Tensor)
        scaled = spoil(self.pictures[rows], spoils, settings.noise_variance, generator)
        if self.known:
            columns = self._lookup(rows, spoils.flip)
        else:
            seen = erase(self.clip.pixels(scaled), spoils.boxes)
            columns = self.clip.forward(seen, tokens=self.eye.reads == "tokens")
        return self._read(columns, lambda: self.eye.pixels(scaled, spoils.boxes))

    def _known(self, mirror: bool, rows: Sequence[int]) -> Columns:
        cache, keys = self.known[mirror]
        return cache.gather([keys[row] for row in rows])

    def _lookup(self, rows: Sequence[int], flip: torch.Tensor) -> Columns:
        clean, mirrored = self._known(False, rows), self._known(True, rows)
        found = {}
        for name, here in clean.items():
            side = flip.view(-1, *[1] * (here.dim() - 1))
            found[name] = torch.where(side, mirrored[name], here)
        return found

    def _read(self, columns: Columns, pixels: Callable[[], torch.Tensor]) -> Read:
        features = columns["embedding"].float()
        if self.eye.reads == "tokens":
            return features, columns["tokens"].float()
        return features, pixels() if self.eye.reads == "pixels" else None
