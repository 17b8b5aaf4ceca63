"""Typed settings of the Exp-CLIP head; the YAML is exactly this, unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from face_mllm.configio import Strict

INSTRUCTION = (
    "Please play the role of a facial action describer. Objectively describe the detailed facial "
    "actions of the person in the image."
)
"""What the paper's teacher is told (all three released runs)."""


class TeacherConfig(Strict):
    """Whose instruction-conditioned feature the head is drawn to."""

    kind: Literal["blip2", "artifact", "text"] = Field(
        description="BLIP-2 with a T5 encoder; an artifact of `train`; captions only"
    )
    model: str = Field(description="hub id, folder or embedded:NAME; for artifact its folder")
    width: int = Field(0, ge=0, description="of its feature, checked; 0 reads it")
    instruction: str = Field(INSTRUCTION, min_length=1)
    pool: Literal["auto", "all", "instruction"] = Field(
        "auto", description="positions the mean is over; auto: all of an encoder, else instruction"
    )
    max_tokens: int = Field(256, ge=8, description="longest caption with instruction (text)")
    batch_size: int = Field(16, ge=1)


class ExpClipConfig(Strict):
    """Training of one head; the defaults are the paper's."""

    kind: Literal["exp_clip"] = "exp_clip"
    data: tuple[Path, ...] = Field(
        min_length=1, description="built datasets or folders of pictures; labels are never read"
    )
    split: str = Field("train", description="split of the built datasets")
    out: Path = Field(description="expert folder to write")
    features: Path | None = Field(None, description="feature store; the user's cache if not given")
    clip: str = Field(description="hub id, folder or embedded:NAME of the frozen CLIP")
    clip_width: int = Field(0, ge=0, description="of its joint space, checked; 0 reads it")
    teacher: TeacherConfig
    paper_preprocess: bool = Field(
        False, description="resize only, no mean and std, as the released heads were trained"
    )
    max_faces: int = Field(0, ge=0, description="use only the first N faces; 0 for all")
    seed: int = Field(1, ge=0, lt=2**32)

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(512, ge=2, description="of all processes together: the negatives")
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of the teacher; CLIP and the head stay fp32"
    )
    log_steps: int = Field(10, ge=1)
