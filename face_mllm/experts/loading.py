"""Either expert from its folder, behind one interface: what the MLLM is joined with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.artifact import INFO_FILE as EXP_CLIP_FILE
from face_mllm.experts.exp_clip.artifact import load_exp_clip
from face_mllm.experts.mask_fer.expert import INFO_FILE as MASK_FER_FILE
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.hardware import best_device


class Expert(Protocol):
    """A frozen expert on faces.

    Attributes:
        classes: canonical expression names, in the order of its probabilities.
    """

    classes: tuple[str, ...]

    @property
    def width(self) -> int:
        """Of its vectors."""
        ...

    def vectors(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """What an expert token is projected from, [N, width], of upright RGB pictures."""
        ...

    def log_probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Natural-log probabilities [N, classes]."""
        ...


def load_expert(folder: Path | str) -> Expert:
    """Load what ``exp-clip train`` or ``mask-fer train`` wrote.

    Raises:
        UserError: neither of the two, damaged, or its CLIP is another one by now.
    """
    folder = Path(folder)
    if (folder / MASK_FER_FILE).exists():
        return MaskFerExpert.from_pretrained(folder, best_device())
    if (folder / EXP_CLIP_FILE).exists():
        return load_exp_clip(folder)
    raise UserError(
        f"{folder}: holds neither {MASK_FER_FILE} nor {EXP_CLIP_FILE}, so no expert",
        "give a folder written by `face-mllm mask-fer train` or `face-mllm exp-clip train`",
    )
