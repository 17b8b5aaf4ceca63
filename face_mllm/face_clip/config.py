"""Typed settings of face-clip's training; the YAML is exactly this, unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.labels.leaks import checked_held_out
from face_mllm.configio import Strict


class ImageTowerConfig(Strict):
    """The ResNet image tower (He et al. 2016); its last map is the token grid."""

    hidden_sizes: tuple[int, ...] = (48, 96, 192, 288)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    stem: int = Field(48, ge=4, description="channels after the 7x7 stride-2 convolution")
    size: int = Field(112, ge=32, description="input side in pixels")
    resize: int = Field(128, ge=32, description="shorter side before the central crop to `size`")

    @model_validator(mode="after")
    def _fits(self) -> ImageTowerConfig:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError("hidden_sizes and depths need the same length")
        if self.resize < self.size:
            raise ValueError("resize must be at least size")
        return self


class TextTowerConfig(Strict):
    """The causal text transformer of CLIP (Radford et al. 2021), small."""

    width: int = Field(160, ge=16)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(2048, ge=300, description="most entries of the byte-level BPE")
    max_tokens: int = Field(80, ge=8)


class AugmentConfig(Strict):
    """How far training pictures are moved and spoilt; labels follow exactly."""

    rotate: float = Field(12.0, ge=0, description="largest turn in degrees; roll follows")
    shift: float = Field(0.06, ge=0, description="largest shift as a share of the side")
    zoom: tuple[float, float] = Field((0.88, 1.12), description="range of the scale")
    flip: float = Field(0.5, ge=0, le=1, description="share of mirrored pictures")
    colour: float = Field(0.2, ge=0, description="strength of brightness, contrast, saturation")
    gray: float = Field(0.1, ge=0, le=1)
    blur: float = Field(0.15, ge=0, le=1)
    noise: float = Field(0.2, ge=0, le=1)
    jpeg: float = Field(0.1, ge=0, le=1)


class LossConfig(Strict):
    """Weights of the losses; a weight of 0 leaves the loss out."""

    contrastive: float = Field(1.0, ge=0)
    captioned: float = Field(0.5, gt=0, le=1, description="share of a batch that gets captions")
    action_unit: float = Field(2.0, ge=0, description="intensity and activity")
    expression: float = Field(0.5, ge=0)
    attribute: float = Field(1.0, ge=0)
    age: float = Field(0.5, ge=0)
    head_pose: float = Field(1.0, ge=0)


class LockedConfig(Strict):
    """The last phase: the text side alone, against the finished image tower."""

    steps: int = Field(0, ge=0, description="0 leaves the phase out")
    batch_size: int = Field(1024, ge=2)
    learning_rate: float = Field(1e-3, gt=0)


class FaceClipConfig(Strict):
    """Training of face-clip."""

    kind: Literal["face_clip"] = "face_clip"
    data: tuple[Path, ...] = Field(
        description="folders of face records with train and val", min_length=1
    )
    extra_data: tuple[Path, ...] = Field(
        (), description="folders whose train split is mixed in; nothing is measured on them"
    )
    note: str = Field("", description="words about the data for the model card")
    out: Path = Field(description="Hugging Face folder to write")
    seed: int = 0
    holdout_attributes: tuple[str, ...] = Field(
        ("smiling", "mouth_open", "blond_hair", "eyes_closed"),
        description="absent from captions and heads, for zero-shot tests",
    )
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    projection: int = Field(128, ge=8, description="width of the shared embedding")
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    locked: LockedConfig = LockedConfig()

    max_steps: int = Field(4000, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.05, ge=0)
    max_grad_norm: float = Field(5.0, gt=0)
    ema: float = Field(
        0.998, ge=0, lt=1, description="decay of the averaged weights, the ones saved"
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    stored_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    save_steps: int = Field(
        500, ge=0, description="resumable checkpoint every so many steps; 0 for none"
    )
    export_steps: int = Field(0, ge=0, description="loadable folder OUT-stepN every so many steps")
    resume: str = Field("auto", description="auto, never, or a checkpoint file")
    log_steps: int = Field(20, ge=1)
    max_train: int = Field(0, ge=0, description="use only the first N training faces; 0 for all")
    probe_train: int = Field(
        6000, ge=50, description="training faces the linear probe is fitted on"
    )

    @field_validator("holdout_attributes")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_held_out(value)
