"""Typed settings of mask-FER; the YAML is exactly this, unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from data_pipeline.labels.expressions import (
    CLASS_SETS,
    COMPOUND_EXPRESSIONS,
    canonical_expression,
)
from face_mllm.configio import Strict
from face_mllm.errors import UserError

CAFE7 = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""Class order of the paper's code (RAF-DB's own): it decides which channels a class gets."""

NAMED_CLASSES = {**CLASS_SETS, "cafe7": CAFE7}


class ClipSettings(Strict):
    """The frozen CLIP."""

    model: str = Field("openai/clip-vit-base-patch32", description="hub id, folder, embedded:NAME")
    width: int = Field(0, ge=0, description="of its joint space, checked; 0 reads it")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    features: Literal["online", "cached"] = Field(
        "online",
        description="online: CLIP sees the augmented picture, as the paper; cached: the clean "
        "picture and its mirror image, once, and noise and erasing touch the mask network alone",
    )


class MaskSettings(Strict):
    """The network that makes the mask; the paper's is a ResNet-18 trained on faces."""

    kind: Literal["resnet", "patch_head", "none"] = Field(
        "resnet",
        description="patch_head: an MLP on frozen patch tokens, a variant; none: ablation, x = F",
    )
    weights: str | None = Field(
        None,
        description="hub id, folder, embedded:NAME, or a file of torchvision-style ResNet "
        "weights (.safetensors, .pth); None starts from scratch",
    )
    embedding_size: int = Field(64, ge=4, description="channels of the stem")
    hidden_sizes: tuple[PositiveInt, ...] = Field((64, 128, 256, 512), min_length=1)
    depths: tuple[PositiveInt, ...] = (2, 2, 2, 2)
    layer_type: Literal["basic", "bottleneck"] = "basic"
    size: int = Field(0, ge=0, description="input side; 0 takes CLIP's")
    hidden: int = Field(256, ge=1, description="inner width of patch_head")
    match: Literal["linear", "mean"] = Field(
        "linear", description="mask width to CLIP's where they differ; the paper's is a mean"
    )

    @model_validator(mode="after")
    def _fits(self) -> MaskSettings:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError("hidden_sizes and depths need the same length")
        if self.kind != "resnet" and self.weights:
            raise ValueError(f"weights are for kind: resnet, not {self.kind}")
        return self


class LossSettings(Strict):
    """Terms of the loss: CE + separation * l_sep + diversity * l_div."""

    separation: float = Field(1.5, ge=0)
    diversity: float = Field(5.0, ge=0)
    drop: float = Field(0.137, ge=0, lt=1, description="share of a group's channels dropped")
    drop_per_sample: bool = Field(False, description="else one mask a step for the whole batch")
    div_norm: Literal["code", "paper"] = Field(
        "code", description="code also divides by the number of classes"
    )


class AugmentSettings(Strict):
    """How training pictures are spoilt, as the paper's code."""

    noise: float = Field(0.5, ge=0, le=1, description="share that gets Gaussian noise")
    noise_variance: float = Field(30.0, ge=0, description="in levels of 0-255, squared")
    flip: float = Field(0.5, ge=0, le=1)
    erase: float = Field(0.5, ge=0, le=1, description="share that loses a rectangle")
    erase_area: tuple[float, float] = Field((0.02, 0.25), description="share of the picture")

    @field_validator("erase_area")
    @classmethod
    def _a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("two shares of the picture, from 0 to 1, the smaller one first")
        return value


class MaskFerConfig(Strict):
    """Training of mask-FER."""

    kind: Literal["mask_fer"] = "mask_fer"
    data: Path = Field(description="built dataset with a train split; its test split is not read")
    out: Path = Field(description="artifact folder to write")
    seed: int = Field(3407, ge=0, lt=2**32)
    classes: tuple[str, ...] = Field(
        NAMED_CLASSES["basic7"], description="names in order, or basic7, canonical8, cafe7"
    )
    remap: dict[str, str] = Field(
        default_factory=dict, description="class -> class, by name, before the classes are read"
    )
    val_share: float = Field(
        0.1, gt=0, lt=1, description="of the subjects, where the dataset has no val split"
    )
    select: Literal["val", "last"] = Field(
        "val", description="which epoch is kept; the test split never decides"
    )
    logits_from: Literal["fc", "separated", "mean"] = "fc"
    paper_preprocess: bool = Field(
        False, description="squash to the square and ImageNet mean and std for CLIP too"
    )
    clip: ClipSettings = ClipSettings()
    mask: MaskSettings = MaskSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()

    epochs: int = Field(60, ge=1)
    max_steps: int = Field(-1, description="optimiser steps; -1 lets epochs decide")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    gamma: float = Field(0.9, gt=0, le=1, description="learning rate factor after each epoch")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="of the mask network")
    save_steps: int = Field(
        1, ge=0, description="resumable checkpoint every so many epochs; 0 for none"
    )
    resume: str = Field("auto", description="auto, never, or a checkpoint file")
    picture_memory_gib: float = Field(4.0, ge=0, description="decoded pictures kept, at most")

    @field_validator("classes", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return NAMED_CLASSES.get(value, (value,)) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(class_name(name) for name in value)
        if len(set(names)) != len(names) or len(names) < 2:
            raise ValueError("classes need two or more different names")
        return names

    @field_validator("remap")
    @classmethod
    def _canonical_remap(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        remap = {class_name(old): class_name(new) for old, new in value.items()}
        check_remap(remap, info.data.get("classes", tuple(remap.values())))
        return remap


def class_name(word: str) -> str:
    """The canonical name of a basic or compound expression.

    Raises:
        ValueError: an unknown word, naming the nearest.
    """
    if word in COMPOUND_EXPRESSIONS:
        return word
    try:
        return canonical_expression(word)
    except UserError as error:
        raise ValueError(str(error)) from error


def check_remap(remap: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuse a remap that would lose faces instead of counting them under another class.

    Raises:
        ValueError: one leads to a class that is none of these.
    """
    for old, new in remap.items():
        if new not in classes:
            raise ValueError(
                f"{old} -> {new}, but {new} is none of the classes {', '.join(classes)}"
            )
