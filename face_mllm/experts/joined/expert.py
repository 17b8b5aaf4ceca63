"""An expert ready to look at faces: its vector for the token, its log-probabilities, its words."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from face_mllm.experts.exp_clip.artifact import ExpClip
from face_mllm.experts.exp_clip.zero_shot import prompt_features
from face_mllm.experts.joined.heads import ExpClipJoinedHead, ExpertHead, MaskFerHead
from face_mllm.experts.joined.look import Look
from face_mllm.experts.joined.settings import HEAD_PART, ExpertBase
from face_mllm.experts.joined.verdict import verdict
from face_mllm.experts.loading import (
    FILES,
    kind_of,
    known_classes,
    load_expert,
    mark_trained_along,
)
from face_mllm.experts.mask_fer import MaskFerExpert
from face_mllm.experts.mask_fer.config import LossSettings
from face_mllm.features import FrozenClip
from face_mllm.features.cache import model_identity

FOLDER = "expert"  # inside an artifact


class JoinedExpert:
    """Frozen CLIP and head of an expert, with what the MLLM wants of them.

    Args:
        folder: of the expert.
        base: how it is joined.
        device: where CLIP and head run.

    Raises:
        UserError: no expert there, damaged, or its CLIP is not to be had.
    """

    def __init__(self, folder: Path, base: ExpertBase, device: str = "cpu") -> None:
        self.folder, self.base, self.device = folder, base, device
        self.clip: FrozenClip
        self.head: ExpertHead
        self.classes: tuple[str, ...]
        self.reads: str  # beside CLIP's embedding: pixels, tokens or nothing
        self._read: Callable[[Sequence[Image.Image]], tuple[torch.Tensor, torch.Tensor | None]]
        self._take(load_expert(folder))
        self.head.to(device).eval()
        self.trains_along = False  # its head is part of a model in training
        blank = self.look([Image.new("RGB", (64, 64))])
        self.width = blank.vectors.shape[1]

    def _take(self, expert: MaskFerExpert | ExpClip) -> None:
        """Take up what an expert of either kind brings."""
        self.clip, self.classes = expert.clip, known_classes(self.folder, self.base.classes)
        if isinstance(expert, MaskFerExpert):
            weights = LossSettings(**expert.training.get("config", {}).get("loss", {}))
            self.head = MaskFerHead(expert.model, expert.shape.logits_from, weights)
            self._read, self._eye = expert.read, expert.eye
            self.reads = expert.eye.reads
            return
        self.reads = "nothing"
        texts = prompt_features(expert.clip, self.classes, self.base.prompt_type)
        self.head = ExpClipJoinedHead(expert.head, texts, expert.clip.logit_scale)
        self._read = self._embedding

    def _embedding(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, None]:
        made = self.clip.forward(self.clip.pixels(self.clip.squares(images)))
        return made["embedding"].float(), None

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image]) -> Look:
        """Look at upright RGB pictures of one face each; what it returns is on the CPU."""
        features, seen = self._read(images)
        weight = next(self.head.parameters())
        placed = [
            None if x is None else x.to(weight.device, weight.dtype) for x in (features, seen)
        ]
        training = self.head.training
        self.head.eval()
        vectors = self.head.vectors(*placed)  # type: ignore[arg-type]
        logs = self.head.logits(vectors).log_softmax(-1)
        self.head.train(training)
        return Look(features, seen, vectors.cpu(), logs.cpu())

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What a mask network that reads pixels sees, [N, 3, S, S]."""
        return self._eye.pixels(self.clip.squares(images).float() / 255)

    def log_probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Natural-log probabilities [N, K]."""
        return self.look(images).logs

    def view(self, images: Sequence[Image.Image]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What the model is given of each face, and what the prompt says of it."""
        if not (self.base.token or self.base.text):
            return {}, [""] * len(images)
        found = self.look(images)
        return self.inputs(found), [self.words(row) for row in found.logs]

    def inputs(self, found: Look) -> dict[str, torch.Tensor]:
        """``expert_features`` and, where the head trains along, ``expert_seen`` of the forward."""
        if not self.base.token:
            return {}
        if not self.trains_along:
            return {"expert_features": found.vectors}
        given = {"expert_features": found.features, "expert_seen": found.seen}
        return {name: value for name, value in given.items() if value is not None}

    def words(self, logs: torch.Tensor) -> str:
        """The verdict in the prompt; empty where it is switched off."""
        return verdict(self.classes, logs, self.base.most) if self.base.text else ""

    def identity(self) -> dict[str, Any]:
        """All that decides what it sees beside the picture."""
        return {
            "clip": self.clip.identity(),
            "kind": self.base.kind,
            "head": model_identity(self.head),
            "logits": self.head.source,
            "classes": list(self.classes),
            "prompts": self.base.prompt_type,
        }

    def save(self, folder: Path) -> None:
        """Write the expert into an artifact whose weights are already there.

        A head that was trained along lies there as ``expert_head.safetensors`` and takes the place
        of the weights it began from, so the folder is a whole expert again.
        """
        target = folder / FOLDER
        target.mkdir()
        about, weights = FILES[self.base.kind]
        for name in (about, weights, "README.md"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, target / name)
        trained = folder / f"{HEAD_PART}.safetensors"
        if trained.exists():
            state = {k.removeprefix("net."): v for k, v in load_file(trained).items()}
            save_file(state, target / weights)
            trained.unlink()
            mark_trained_along(target)


def open_expert(folder: Path | str, device: str = "cpu", **changes: Any) -> JoinedExpert:
    """An expert's folder on its own; ``changes`` are attributes of its :class:`ExpertBase`."""
    folder = Path(folder)
    base = ExpertBase(kind_of(folder), str(folder))
    return JoinedExpert(folder, dataclasses.replace(base, **changes), device)
