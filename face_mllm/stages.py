"""What a stage trains: parts frozen, full or LoRA, printed as a table and enforced."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from face_mllm.config import LoraSettings, StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import expert_trainings
from face_mllm.model import FaceMLLMForConditionalGeneration

PART_PREFIX = {
    "vision": "vision_tower.",
    "projector": "projector.",
    "llm": "language_model.",
    "expert": "expert.",  # the projector of the expert's token
    "expert_head": "expert_head.",  # an expert's own head, in the model only while it trains along
}


@dataclass(frozen=True)
class PartRow:
    """One line of the freeze table."""

    part: str
    training: str
    trainable: int
    total: int


def lora_pattern(settings: LoraSettings, part: str = "llm") -> str:
    """Regex of the adapted layers, anchored on one part so the towers' namesakes never match."""
    names = "|".join(re.escape(name) for name in settings.targets)
    return rf"{re.escape(PART_PREFIX[part])}(.*\.)?({names})"


def add_lora(model: FaceMLLMForConditionalGeneration, settings: LoraSettings) -> int:
    """Attach fresh LoRA layers to the LLM; return how many matched (none is an error)."""
    pattern = re.compile(lora_pattern(settings))
    matched = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(name)
    ]
    if not matched:
        linear = {
            n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)
        }
        raise UserError(
            f"LoRA targets {list(settings.targets)} match no layer of the LLM",
            f"set llm.lora.targets to some of {sorted(linear)}",
        )
    attach_adapter(
        model,
        LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=pattern.pattern,
        ),
    )
    return len(matched)


def attach_adapter(model: FaceMLLMForConditionalGeneration, config: LoraConfig) -> None:
    """Put PEFT's layers into the model; precision is left to autocast."""
    model.add_adapter(config)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # PEFT would widen every input to fp32 only for autocast to narrow it again
            module.cast_input_dtype_enabled = False


def part_trainings(config: StageConfig) -> dict[str, str]:
    """Part -> frozen | full | lora as the stage says."""
    return {
        "vision": config.vision.train,
        "projector": config.projector.train,
        "llm": config.llm.train,
    }


def apply_freeze(model: FaceMLLMForConditionalGeneration, config: StageConfig) -> list[PartRow]:
    """Set ``requires_grad`` of every parameter as the stage says and return the table.

    Trainable weights become fp32 masters, whatever dtype they came in.
    """
    trainings = {**part_trainings(config), **expert_trainings(model, config.expert)}
    if trainings["vision"] == "lora":
        raise UserError("vision.train: lora is not supported", "use frozen or full")
    for name, parameter in model.named_parameters():
        training = trainings[part_of(name)]
        wanted = training == "full" or (training == "lora" and "lora_" in name)
        parameter.requires_grad_(wanted)
        if wanted and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    rows = freeze_table(model, trainings)
    check_table(rows)
    return rows


def part_of(name: str) -> str:
    """The part a parameter name belongs to."""
    for part, prefix in PART_PREFIX.items():
        if name.startswith(prefix):
            return part
    raise ValueError(f"parameter {name} belongs to no part")


def freeze_table(
    model: FaceMLLMForConditionalGeneration, trainings: dict[str, str]
) -> list[PartRow]:
    """Count trainable and all parameters of each part."""
    counts = {part: [0, 0] for part in trainings}
    for name, parameter in model.named_parameters():
        counts[part_of(name)][0] += parameter.numel() * parameter.requires_grad
        counts[part_of(name)][1] += parameter.numel()
    return [PartRow(part, trainings[part], *counts[part]) for part in trainings]


def check_table(rows: list[PartRow]) -> None:
    """Stop a run whose trainable set differs from what its table says."""
    for row in rows:
        expected = {
            "frozen": row.trainable == 0,
            "full": row.trainable == row.total,
            "lora": 0 < row.trainable < row.total,
        }[row.training]
        if not expected:
            raise UserError(
                f"part {row.part} is {row.training} but {row.trainable:,} of {row.total:,} "
                "parameters would train",
                "a stage with llm.train: lora needs LoRA layers; check init_from and llm.lora",
            )
    if not any(row.trainable for row in rows):
        raise UserError("nothing would train", "set one part's train to full or lora")
