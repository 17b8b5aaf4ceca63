"""A CLIP that is never trained: joint-space vectors and patch states of faces, from a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data_pipeline.records import FaceRecord
from face_mllm.compose import folder_fingerprint
from face_mllm.errors import UserError
from face_mllm.face_clip.model import load_face_clip
from face_mllm.features.cache import (
    Columns,
    FeatureCache,
    face_features,
    model_identity,
    settings_identity,
)
from face_mllm.features.pixels import OWN_PIXELS, PixelRule, squash
from face_mllm.model.processing import load_image_processor
from face_mllm.model.vision import as_tokens
from face_mllm.progress import Progress
from face_mllm.references import resolve

MAX_SCALE = 100.0


class FrozenClip:
    """A CLIP, SigLIP or dual-encoder folder in eval mode, without gradients.

    Args:
        reference: hub id, folder or ``embedded:NAME``.
        rule: how pixels are made; papers differ from the tower's processor here.
        dtype: of weights and features.
        device: where it runs; what it returns is on the CPU.
        fingerprint: of the weights an artifact was trained on; another one is refused.

    Raises:
        UserError: no such model, not a dual encoder, or another fingerprint.
    """

    def __init__(
        self,
        reference: str,
        rule: PixelRule = OWN_PIXELS,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        fingerprint: str = "",
    ) -> None:
        self.reference, self.rule, self.dtype, self.device = reference, rule, dtype, device
        self.folder = resolve(reference)
        self.fingerprint = folder_fingerprint(self.folder)
        if fingerprint and fingerprint != self.fingerprint:
            raise UserError(
                f"{reference} is not the CLIP this expert was trained on "
                f"(fingerprint {self.fingerprint[:12]}, expected {fingerprint[:12]})",
                "point the reference at the original weights",
            )
        self.model: Any = _load_clip(self.folder, dtype).to(device).requires_grad_(False).eval()
        self.processor: Any = load_image_processor(self.folder)
        blank = self.pixels(self.squares([Image.new("RGB", (64, 64))]))
        features = self.forward(blank, tokens=True)
        self.size: int = blank.shape[-1]
        self.width: int = features["embedding"].shape[-1]
        self.token_width: int = features["tokens"].shape[-1]

    @property
    def logit_scale(self) -> float:
        """The inverse temperature CLIP was trained to, at most 100, where CLIP clips it."""
        return min(MAX_SCALE, float(self.model.logit_scale.detach().float().exp()))

    def squares(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Cut pictures to the tower's square, uint8 [N, 3, size, size]."""
        if not self.rule.squash:
            made = self.processor(
                list(images), do_rescale=False, do_normalize=False, return_tensors="pt"
            )
            return made["pixel_values"].round().clamp(0, 255).to(torch.uint8)
        blank = self.processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        return squash(images, *blank.shape[-2:])

    def pixels(self, squares: torch.Tensor) -> torch.Tensor:
        """Normalise squares: uint8, or float in 0-1, to what the tower reads."""
        scaled = squares.float() / 255 if squares.dtype == torch.uint8 else squares
        mean, std = self.rule.mean, self.rule.std
        if mean is None and not self.processor.do_normalize:
            return scaled
        mean, std = mean or self.processor.image_mean, std or self.processor.image_std
        centre, spread = (torch.tensor(v, device=scaled.device).view(3, 1, 1) for v in (mean, std))
        return (scaled - centre) / spread

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, tokens: bool = False) -> Columns:
        """Features of normalised pixels.

        Returns:
            ``embedding`` [N, D], in the joint space and not normalised; with ``tokens`` also
            ``tokens`` [N, T, C], the patch states (or cells of a CNN) before the projection.

        Raises:
            UserError: numbers that are not finite.
        """
        pixels = pixels.to(self.device, self.dtype)
        seen = self.model.get_image_features(pixel_values=pixels, output_hidden_states=tokens)
        made = {"embedding": seen.pooler_output}
        if tokens:  # of the same pass
            made["tokens"] = as_tokens(self.model.vision_model, seen.hidden_states[-1], "patch")
        return {name: self._finite(value.cpu(), "its features") for name, value in made.items()}

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Joint-space embeddings [texts, D], not normalised."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        found = self.model.get_text_features(**inputs.to(self.device)).pooler_output.cpu()
        return self._finite(found, "its features of texts")

    def _finite(self, found: torch.Tensor, what: str) -> torch.Tensor:
        """The same, or an error: NaN would turn into losses and answers without a word."""
        if torch.isfinite(found).all():
            return found
        raise UserError(
            f"{self.reference}: {what} are not finite numbers",
            "get whole weights, or compute in float32"
            if self.dtype != torch.float32
            else "its weights are damaged: get them again",
        )

    @cached_property
    def _model_identity(self) -> dict[str, Any]:
        return model_identity(self.model)

    def identity(self) -> dict[str, Any]:
        """All that decides a feature beside the picture."""
        return {
            "model": self._model_identity,
            "processor": settings_identity(self.processor),
            "rule": dataclasses.asdict(self.rule),
            "dtype": str(self.dtype),
        }

    def cached(
        self,
        records: Iterable[FaceRecord],
        *,
        tokens: bool = False,
        mirror: bool = False,
        root: Path | None = None,
        progress: Progress | None = None,
    ) -> tuple[FeatureCache, list[bytes]]:
        """The cache that holds the features of faces, and a key each record.

        Args:
            records: the faces.
            tokens: patch states too, see :meth:`forward`.
            mirror: of the mirrored pictures.
            root: cache folder, the user's if not given.
            progress: told of pictures done.
        """

        def compute(images: list[Image.Image]) -> Columns:
            pixels = self.pixels(self.squares(images))
            return self.forward(pixels.flip(-1) if mirror else pixels, tokens)

        cache = FeatureCache({**self.identity(), "tokens": tokens, "mirror": mirror}, root)
        return cache, face_features(cache, records, compute, progress=progress)

    def features(
        self,
        records: Iterable[FaceRecord],
        *,
        root: Path | None = None,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Joint-space vectors [N, D] of faces, not normalised; from the cache where known."""
        cache, keys = self.cached(records, root=root, progress=progress)
        return cache.gather(keys)["embedding"]


def _load_clip(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind == "vision-text-dual-encoder":  # the stock class cannot pool a CNN
            return load_face_clip(folder, dtype)
        model = AutoModel.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a model this transformers version can load ({error})",
            "give a Hugging Face CLIP or SigLIP folder or id",
        ) from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "vision_model"):
        raise UserError(
            f"{folder}: a {kind} model has no image embedding in a joint space",
            "give a CLIP, SigLIP or vision-text dual encoder",
        )
    return model
