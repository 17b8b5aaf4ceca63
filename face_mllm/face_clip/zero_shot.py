"""Zero-shot classification with a CLIP folder: pictures against groups of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer

from face_mllm.face_clip.model import load_face_clip

BATCH = 64


class ZeroShot:
    """A dual-encoder folder with its processors.

    Args:
        folder: written by ``face-mllm train stage_configs/embedded/face_clip.yaml``.
    """

    def __init__(self, folder: Path | str) -> None:
        self.model = load_face_clip(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    @torch.inference_mode()
    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return [images, D] unit-length embeddings."""
        batches = []
        for start in range(0, len(images), BATCH):
            chosen = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.processor(chosen, return_tensors="pt")["pixel_values"]
            batches.append(self.model.get_image_features(pixel_values=pixels).pooler_output)
        return functional.normalize(torch.cat(batches), dim=-1)

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Return [texts, D] unit-length embeddings."""
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return functional.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)

    def zero_shot(
        self, images: Sequence[Image.Image], prompts: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Return probabilities over groups of prompts.

        A group's logit is the mean of its prompts' logits (Exp-CLIP, arXiv 2405.19100), not the
        logit of a mean embedding.

        Args:
            images: pictures of any size.
            prompts: one group of wordings per class.

        Returns:
            [images, groups], rows sum to 1.
        """
        return self.probabilities(self.image_embeddings(images), prompts)

    def probabilities(self, image: torch.Tensor, prompts: Sequence[Sequence[str]]) -> np.ndarray:
        """:meth:`zero_shot` on embeddings, so pictures are encoded once for many questions."""
        text = self.text_embeddings(list(chain.from_iterable(prompts)))
        with torch.inference_mode():
            logits = self.model.logit_scale.exp() * image @ text.T
            groups = logits.split([len(group) for group in prompts], dim=-1)
            scores = torch.stack([group.mean(-1) for group in groups], -1)
            return scores.softmax(-1).numpy()
