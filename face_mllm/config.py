"""Typed settings of one training stage; a stage YAML is exactly this, unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from face_mllm.configio import Strict
from face_mllm.experts.joined.settings import ExpertSettings

Training = Literal["frozen", "full", "lora"]


ALL_LINEAR = "all-linear"  # PEFT's word


class LoraSettings(Strict):
    """Low-rank adapters on one part (LoRA, Hu et al. 2021), by PEFT."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    dora: bool = Field(False, description="weight-decomposed LoRA (DoRA, Liu et al. 2024)")
    rslora: bool = Field(
        False, description="scale by alpha / sqrt(r) instead of alpha / r (rsLoRA, 2023)"
    )
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="layers inside the part, by last name; all-linear takes every one",
    )


class VisionLoraSettings(LoraSettings):
    """Low-rank adapters on the vision tower: towers name their layers each in its own way."""

    targets: tuple[str, ...] = Field(
        (ALL_LINEAR,), description="linear layers and convolutions, by last name"
    )


class VisionConfig(Strict):
    """The vision tower: which one, which of its states, trained or not."""

    model: str | None = Field(None, description="hub id, folder or embedded:NAME; None inherits")
    train: Training = Field("frozen", description="frozen in every relative of Face-MLLM")
    lora: VisionLoraSettings = VisionLoraSettings()
    learning_rate: float | None = Field(None, ge=0, description="None takes the stage's")
    layer: int = Field(-1, description="hidden state fed to the projector; LLaVA-1.5 takes -2")
    select: Literal["full", "patch"] = Field("full", description="patch drops a class token")


class ProjectorConfig(Strict):
    """The 2-layer GELU MLP between tower and LLM."""

    train: Literal["frozen", "full"] = "full"
    hidden: int = Field(0, ge=0, description="inner width; 0 takes the LLM's width")
    learning_rate: float | None = Field(None, ge=0, description="None takes the stage's")
    lexical_steps: int = Field(
        0, ge=0, description="steps of the lexical warm start, see lexical.py"
    )


class LLMConfig(Strict):
    """The causal LLM."""

    model: str | None = Field(None, description="hub id, folder or embedded:NAME; None inherits")
    train: Training = "frozen"
    lora: LoraSettings = LoraSettings()
    learning_rate: float | None = Field(None, ge=0, description="None takes the stage's")
    quant: Literal["none", "nf4"] | None = Field(
        None, description="nf4 keeps the frozen weights in 4 bits (QLoRA, 2023); None inherits"
    )


class CurriculumSettings(Strict):
    """Mixed-order self-paced sampling, see curriculum.py."""

    loss_share: float = Field(0.5, ge=0, le=1, description="difficulty: loss against entropy")
    hard_share: tuple[float, float] = Field(
        (0.1, 0.5), description="hard faces in a batch at the start and the end of the run"
    )
    smoothing: float = Field(0.5, ge=0, lt=1, description="weight of a face's earlier visits")


class StageConfig(Strict):
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
    expert: ExpertSettings | None = Field(
        None, description="an expert as token, as words, by late fusion; None inherits"
    )
    system: str | None = Field(None, description="system message; None inherits, '' for none")

    tasks: dict[str, float] = Field(
        default_factory=dict, description="task -> share of a face's questions; empty takes all"
    )
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="task -> factor on the loss of its answers"
    )
    max_questions_per_face: int = Field(40, ge=1, description="branches drawn per face and epoch")
    max_tokens: int = Field(2048, ge=64, description="longest row; several faces share one")
    pack: bool = Field(True, description="false gives every face a row of its own")
    rows_per_pass: int = Field(
        0, ge=0, description="rows of a batch in one forward pass; 0 for all: bounds memory"
    )
    attention: Literal["auto", "eager", "sdpa", "flex"] = Field(
        "auto", description="of the LLM in training; flex skips masked blocks, CUDA only"
    )
    cache_features: bool = Field(
        False, description="keep what the frozen tower sees on disk; each picture is seen once"
    )
    verify_packing: bool = Field(
        False, description="compare the first batch with separate passes before training"
    )
    curriculum: CurriculumSettings | None = Field(
        None, description="easy and hard faces mixed; {} takes its defaults"
    )

    epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, description="optimiser steps; -1 lets epochs decide")
    faces_per_device: int = Field(4, ge=1, description="faces of one process in a batch")
    accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, ge=0, description="0 freezes what has no rate of its own")
    optimizer: Literal["auto", "fused", "foreach", "single"] = Field(
        "auto", description="how AdamW's update runs; auto takes the fastest the device has"
    )
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    liger: bool = Field(False, description="Liger kernels inside the LLM; CUDA, extra [liger]")
    compile: bool = Field(False, description="torch.compile of the LLM's decoder")
    save_steps: int = Field(0, ge=0, description="checkpoint every so many steps; 0 for none")
    keep_checkpoints: int = Field(2, ge=1)
    resume: str = Field("auto", description="auto, never, or a checkpoint folder")
    log_steps: int = Field(5, ge=1)
    report_to: tuple[str, ...] = Field((), description="tensorboard, wandb, trackio ...")
    workers: int | None = Field(
        None, ge=0, description="data-loading processes; None: up to 4 for a GPU, none on a CPU"
    )
    deepspeed: Path | None = Field(None, description="a DeepSpeed JSON; else the launcher's choice")
    timeout: float = Field(1800, gt=0, description="seconds a process waits for the others")

    @model_validator(mode="after")
    def _parts_are_known(self) -> StageConfig:
        if self.init_from is None and (self.vision.model is None or self.llm.model is None):
            raise ValueError("without init_from, vision.model and llm.model must be given")
        if self.cache_features and self.vision.train != "frozen":
            raise ValueError("cache_features needs vision.train: frozen: its features would change")
        unknown = sorted(self.task_weights.keys() - self.tasks.keys()) if self.tasks else []
        if unknown:
            raise ValueError(f"task_weights names {unknown}, which `tasks` does not ask")
        if self.llm.quant == "nf4" and self.llm.train == "full":
            raise ValueError("llm.quant: nf4 weights cannot be trained; set llm.train: lora")
        if self.projector.lexical_steps and self.part_trainings()["projector"] == "frozen":
            raise ValueError("projector.lexical_steps would change a frozen projector")
        return self

    def part_rates(self) -> dict[str, float]:
        """Part -> learning rate: its own, else the stage's."""
        rates = {
            "vision": self.vision.learning_rate,
            "projector": self.projector.learning_rate,
            "llm": self.llm.learning_rate,
        }
        return {part: self.learning_rate if rate is None else rate for part, rate in rates.items()}

    def part_trainings(self) -> dict[str, Training]:
        """Part -> frozen | full | lora; a learning rate of 0 means frozen."""
        wanted: dict[str, Training] = {
            "vision": self.vision.train,
            "projector": self.projector.train,
            "llm": self.llm.train,
        }
        rates = self.part_rates()
        return {part: wanted[part] if rates[part] else "frozen" for part in wanted}
