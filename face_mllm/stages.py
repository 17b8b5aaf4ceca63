"""What a stage trains: parts frozen, full or LoRA, printed as a table and enforced."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from face_mllm.config import ALL_LINEAR, LoraSettings, StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import expert_trainings
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.vision import image_tokens

PART_PREFIX = {
    "vision": "vision_tower.",
    "projector": "projector.",
    "llm": "language_model.",
    "expert": "expert.",  # the projector of the expert's token
    "expert_head": "expert_head.",  # an expert's own head, in the model only while it trains along
}
# PEFT's name of each part's adapter; "default" is what PEFT itself calls an only one
ADAPTER_NAME = {"llm": "default", "vision": "vision"}
_ADAPTABLE = (nn.Linear, nn.Conv2d)  # 4-bit linear layers are nn.Linear too


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
    names = r"[^.]+" if ALL_LINEAR in settings.targets else names
    return rf"{re.escape(PART_PREFIX[part])}(.*\.)?({names})"


def lora_targets(
    model: FaceMLLMForConditionalGeneration, settings: LoraSettings, part: str = "llm"
) -> list[str]:
    """Names of the layers of a part that get an adapter.

    Only linear layers and convolutions count, the language head never does. In the tower, layers
    behind the hidden state that the projector reads are left out: they would never get a gradient.

    Raises:
        UserError: when none matches.
    """
    pattern = re.compile(lora_pattern(settings, part))
    skipped = _unread_layers(model) if part == "vision" else _heads(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _ADAPTABLE)
        and name.startswith(PART_PREFIX[part])
        and name not in skipped
    ]
    matched = [name for name in linear if pattern.fullmatch(name)]
    if not matched:
        last = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"{part}.lora.targets {list(settings.targets)} match no layer of the {part} part",
            f"set {part}.lora.targets to [{ALL_LINEAR}] or some of {last}",
        )
    return matched


def _heads(model: FaceMLLMForConditionalGeneration) -> set[str]:
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if module is head}


def _unread_layers(model: FaceMLLMForConditionalGeneration) -> set[str]:
    """Layers of the tower that do not reach the projector, found by their missing gradient."""
    tower = model.vision_tower
    weights = {
        f"{PART_PREFIX['vision']}{name}": module.weight
        for name, module in tower.named_modules()
        if isinstance(module, _ADAPTABLE)
    }
    wanted = {name: weight.requires_grad for name, weight in weights.items()}
    size = getattr(tower.config, "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else size
    like = next(tower.parameters())
    blank = torch.zeros(1, 3, height, width, dtype=like.dtype, device=like.device)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            config = model.config
            seen = image_tokens(tower, blank, config.vision_layer, config.vision_select).sum()
            grads = torch.autograd.grad(seen, list(weights.values()), allow_unused=True)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(wanted[name])
    return {name for name, grad in zip(weights, grads, strict=True) if grad is None}


def add_lora(
    model: FaceMLLMForConditionalGeneration, settings: LoraSettings, part: str = "llm"
) -> Counter[str]:
    """Attach a fresh adapter to a part; none matching is an error.

    Returns:
        How many layers of each last name it matched, e.g. ``{"q_proj": 30, ...}``.
    """
    matched = lora_targets(model, settings, part)
    last_names = Counter(name.rsplit(".", 1)[-1] for name in matched)
    # PEFT matches by pattern: the last names, less whatever else they would reach
    pattern = lora_pattern(settings.model_copy(update={"targets": tuple(last_names)}), part)
    reached = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        target_modules=pattern,
        exclude_modules=sorted(reached - set(matched)) or None,
    )
    attach_adapter(model, config, part)
    return last_names


def matched_words(matched: Counter[str]) -> str:
    """Which layers got an adapter, e.g. ``4 layers: k_proj x2, q_proj x2``."""
    names = ", ".join(f"{name} x{count}" for name, count in sorted(matched.items()))
    return f"{matched.total()} layers: {names}"


def attach_adapter(
    model: FaceMLLMForConditionalGeneration, config: LoraConfig, part: str = "llm"
) -> None:
    """Put PEFT's layers into one part; precision is left to autocast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # one for each part
        model.add_adapter(config, ADAPTER_NAME[part])
    model.set_adapter(list(model.peft_config))  # the other part's stays active
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # PEFT would widen every input to fp32 only for autocast to narrow it again
            module.cast_input_dtype_enabled = False


def check_same_lora(settings: LoraSettings, inherited: LoraConfig, part: str) -> None:
    """Refuse settings that differ from those of the adapter a stage inherits.

    Only keys that the config names count; left out, they are the inherited adapter's.
    """
    kept = {
        "r": inherited.r,
        "alpha": inherited.lora_alpha,
        "dropout": inherited.lora_dropout,
        "dora": inherited.use_dora,
        "rslora": inherited.use_rslora,
    }
    for key in sorted(settings.model_fields_set & kept.keys()):
        if getattr(settings, key) != kept[key]:
            raise UserError(
                f"{part}.lora.{key}: {getattr(settings, key)}, but the adapter of init_from "
                f"has {kept[key]}",
                f"leave {part}.lora out to go on with it, or start from a stage without an adapter",
            )


def ensure_lora(
    model: FaceMLLMForConditionalGeneration,
    adapters: Sequence[str],
    settings: LoraSettings,
    part: str,
) -> str:
    """Give a part its adapter, or go on with the one of the stage before; returns which, in words.

    Args:
        model: composed, with the adapters of the stage before.
        adapters: parts that have one.
        settings: of the stage.
        part: the part to adapt.
    """
    if part in adapters:
        inherited = model.peft_config[ADAPTER_NAME[part]]
        check_same_lora(settings, inherited, part)
        return f"{adapter_words(inherited)} of the {part} part goes on"
    matched = add_lora(model, settings, part)
    words = adapter_words(model.peft_config[ADAPTER_NAME[part]])
    return f"{words} in the {part} part on {matched_words(matched)}"


def adapter_words(config: LoraConfig) -> str:
    """An adapter in a few words, e.g. ``rsLoRA r=16 alpha=32``."""
    name = "DoRA" if config.use_dora else "LoRA"
    return f"{'rs' if config.use_rslora else ''}{name} r={config.r} alpha={config.lora_alpha}"


def apply_freeze(model: FaceMLLMForConditionalGeneration, config: StageConfig) -> list[PartRow]:
    """Set ``requires_grad`` of every parameter as the stage says and return the table.

    Trainable weights become fp32 masters, whatever dtype they came in.
    """
    trainings = {**config.part_trainings(), **expert_trainings(model, config.expert)}
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


def parameter_count(parameter: torch.Tensor) -> int:
    """Weights a parameter stands for: a 4-bit one packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def freeze_table(model: FaceMLLMForConditionalGeneration, trainings: dict) -> list[PartRow]:
    """Count trainable and all parameters of each part."""
    counts = {part: [0, 0] for part in trainings}
    for name, parameter in model.named_parameters():
        number = parameter_count(parameter)
        counts[part_of(name)][0] += number * parameter.requires_grad
        counts[part_of(name)][1] += number
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
                f"a stage with {row.part}.train: lora needs LoRA layers; check init_from",
            )
    if not any(row.trainable for row in rows):
        raise UserError(
            "nothing would train", "set one part's train to full or lora, with a rate above 0"
        )
