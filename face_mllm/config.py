"""Typed settings of one training stage; a stage YAML is exactly this, unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Training = Literal["frozen", "full", "lora"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionConfig(_Strict):
    """The vision tower: which one, which of its states, trained or not."""

    model: str | None = Field(None, description="hub id, folder or embedded:NAME; None inherits")
    train: Training = Field("frozen", description="frozen in every relative of Face-MLLM")
    layer: int = Field(-1, description="hidden state fed to the projector; LLaVA-1.5 takes -2")
    select: Literal["full", "patch"] = Field("full", description="patch drops a class token")


class ProjectorConfig(_Strict):
    """The 2-layer GELU MLP between tower and LLM."""

    train: Literal["frozen", "full"] = "full"
    hidden: int = Field(0, ge=0, description="inner width; 0 takes the LLM's width")
    learning_rate: float | None = Field(None, ge=0, description="None takes the stage's")
    lexical_steps: int = Field(
        0, ge=0, description="steps of the lexical warm start, see lexical.py"
    )


class LoraSettings(_Strict):
    """LoRA on the LLM (Hu et al. 2021), by PEFT."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="linear layers inside the LLM, by last name",
    )


class LLMConfig(_Strict):
    """The causal LLM."""

    model: str | None = Field(None, description="hub id, folder or embedded:NAME; None inherits")
    train: Training = "frozen"
    lora: LoraSettings = LoraSettings()


class StageConfig(_Strict):
    """One of the three stages of the MLLM."""

    kind: Literal["mllm"] = "mllm"
    stage: str = Field(description="name in the artifact's chain, e.g. stage2_vqa")
    data: Path = Field(description="built dataset folder")
    out: Path = Field(description="artifact folder to write")
    init_from: Path | None = Field(None, description="artifact of the stage before")
    seed: int = 0

    vision: VisionConfig = VisionConfig()
    projector: ProjectorConfig = ProjectorConfig()
    llm: LLMConfig = LLMConfig()
    system: str | None = Field(None, description="system message; None inherits, '' for none")

    tasks: dict[str, float] = Field(
        default_factory=dict, description="task -> share of a face's questions; empty takes all"
    )
    max_questions_per_face: int = Field(40, ge=1, description="branches drawn per face and epoch")
    max_tokens: int = Field(2048, ge=64, description="longest tree row")

    epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, description="optimiser steps; -1 lets epochs decide")
    faces_per_device: int = Field(4, ge=1, description="tree rows in one forward pass")
    accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    save_steps: int = Field(0, ge=0, description="checkpoint every so many steps; 0 for none")
    keep_checkpoints: int = Field(2, ge=1)
    resume: str = Field("auto", description="auto, never, or a checkpoint folder")
    log_steps: int = Field(5, ge=1)
    report_to: tuple[str, ...] = Field((), description="tensorboard, wandb, trackio ...")
    workers: int = Field(0, ge=0, description="data-loading processes")
    deepspeed: Path | None = Field(None, description="a DeepSpeed JSON; else the launcher's choice")
    timeout: float = Field(1800, gt=0, description="seconds a process waits for the others")

    @model_validator(mode="after")
    def _parts_are_known(self) -> StageConfig:
        if self.init_from is None and (self.vision.model is None or self.llm.model is None):
            raise ValueError("without init_from, vision.model and llm.model must be given")
        return self
