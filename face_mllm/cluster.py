"""Launch configs against the stage: what both name must agree, or hours are lost to one of them.

A DeepSpeed JSON and an accelerate YAML may repeat what the stage config says. DeepSpeed takes
``auto`` for "as the stage says"; an explicit value has to be the stage's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from face_mllm.config import StageConfig
from face_mllm.configio import CONFIG_ROOTS, read_yaml
from face_mllm.errors import UserError

AUTO = "auto"


def check_launch(stage: StageConfig, launch: Path | None, quant: str) -> list[str]:
    """Check the launch configs of a stage.

    Args:
        stage: the stage; its ``deepspeed`` names a DeepSpeed JSON, or None.
        launch: an accelerate YAML, or None.
        quant: of the LLM, inherited or the stage's own.

    Returns:
        What was checked, in words.

    Raises:
        UserError: at the first contradiction, naming file and key.
    """
    checked = []
    if launch is not None:
        launch = find_launch(launch)
        settings = read_yaml(launch)
        check_accelerate(settings, stage, str(launch), quant)
        checked.append(f"{launch.name} agrees with the stage")
        inline = settings.get("deepspeed_config") or {}
        if stage.deepspeed and settings.get("distributed_type") == "FSDP":
            raise UserError(
                f"{launch}: distributed_type FSDP, but the stage names deepspeed: "
                f"{stage.deepspeed}",
                "keep one of the two",
            )
        if inline.get("deepspeed_config_file"):
            path = launch.parent / inline["deepspeed_config_file"]
            check_deepspeed(_read_json(path), stage, str(path), quant)
    if stage.deepspeed is not None:
        check_deepspeed(_read_json(stage.deepspeed), stage, str(stage.deepspeed), quant)
        checked.append(f"{stage.deepspeed.name} agrees with the stage")
    return checked


def find_launch(path: Path) -> Path:
    """An accelerate YAML by path or, for the shipped ones, by name such as ``zero3``."""
    places = [path, *(root / "accelerate" / f"{path.stem}.yaml" for root in CONFIG_ROOTS)]
    for place in places:
        if place.is_file():
            return place
    shipped = sorted({p.stem for root in CONFIG_ROOTS for p in (root / "accelerate").glob("*")})
    raise UserError(
        f"{path}: no such accelerate config",
        f"give a file or one of {', '.join(shipped)}" if shipped else "check the path",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})", "check it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected keys with values", "see DeepSpeed's documentation")
    return found


def check_deepspeed(
    settings: Mapping[str, Any], stage: StageConfig, name: str, quant: str = "none"
) -> None:
    """Check a DeepSpeed JSON.

    Args:
        settings: its content.
        stage: the stage it is to run.
        name: of the file, for the errors.
        quant: of the LLM.
    """
    micro, steps = stage.faces_per_device, stage.accumulation
    _agree(settings, "train_micro_batch_size_per_gpu", micro, "faces_per_device", name)
    _agree(settings, "gradient_accumulation_steps", steps, "accumulation", name)
    _agree(settings, "gradient_clipping", stage.max_grad_norm, "max_grad_norm", name)
    if "gradient_clipping" not in settings:  # DeepSpeed's default is none at all
        raise UserError(
            f"{name}: no gradient_clipping, so max_grad_norm {stage.max_grad_norm} is ignored",
            f'add "gradient_clipping": "{AUTO}"',
        )
    whole = settings.get("train_batch_size", AUTO)
    if whole != AUTO and (not isinstance(whole, int) or whole % (micro * steps)):
        raise UserError(
            f"{name}: train_batch_size {whole} is no multiple of faces_per_device x accumulation "
            f"= {micro * steps}",
            f'set it to "{AUTO}"',
        )
    _precision(settings, stage, name)
    for section in ("optimizer", "scheduler"):
        if section in settings:
            raise UserError(
                f"{name}: {section} would replace the stage's, per-part learning rates included",
                f"remove {section}",
            )
    zero = int((settings.get("zero_optimization") or {}).get("stage", 0))
    _quant(zero == 3, quant, f"{name}: ZeRO-3")
    _whole(zero == 3, stage, name)


def _precision(settings: Mapping[str, Any], stage: StageConfig, name: str) -> None:
    if (settings.get("fp16") or {}).get("enabled") is True:
        raise UserError(f"{name}: fp16 is not among the precisions", 'remove "fp16"')
    narrow = (settings.get("bf16") or {}).get("enabled", AUTO)
    if (narrow is True and stage.precision == "fp32") or (
        narrow is False and stage.precision == "bf16"
    ):
        raise UserError(
            f"{name}: bf16.enabled {str(narrow).lower()}, but the stage's precision is "
            f"{stage.precision}",
            f'set bf16.enabled to "{AUTO}"',
        )


def _agree(settings: Mapping[str, Any], key: str, wanted: float, ours: str, name: str) -> None:
    value = settings.get(key, AUTO)
    if value != AUTO and value != wanted:
        raise UserError(
            f"{name}: {key} {value}, but the stage's {ours} is {wanted}", f'set it to "{AUTO}"'
        )


def _quant(sharded: bool, quant: str, what: str) -> None:
    if sharded and quant == "nf4":
        raise UserError(
            f"{what} would shard the packed NF4 weights",
            "launch with DDP or ZeRO-2, or quant: none",
        )


def _whole(split: bool, stage: StageConfig, name: str) -> None:
    if split and stage.verify_packing:
        raise UserError(
            f"{name}: verify_packing needs whole weights, which ZeRO-3 splits",
            "verify once in one process (max_steps=1), then launch with verify_packing: false",
        )


def check_accelerate(
    settings: Mapping[str, Any], stage: StageConfig, name: str, quant: str = "none"
) -> None:
    """Check an accelerate YAML; arguments as :func:`check_deepspeed`."""
    mixed = str(settings.get("mixed_precision", "no"))
    agreeing = ("no", "False", stage.precision, "bf16" * (stage.precision == "auto"))
    if mixed not in agreeing:
        raise UserError(
            f"{name}: mixed_precision {mixed}, but the stage's precision is {stage.precision}",
            "set mixed_precision: 'no': the stage decides",
        )
    deepspeed = settings.get("deepspeed_config") or {}
    _agree(deepspeed, "gradient_accumulation_steps", stage.accumulation, "accumulation", name)
    _agree(deepspeed, "gradient_clipping", stage.max_grad_norm, "max_grad_norm", name)
    zero = int(deepspeed.get("zero_stage", 0))
    _quant(zero == 3, quant, f"{name}: ZeRO-3")
    _whole(zero == 3, stage, name)
    if settings.get("distributed_type") != "FSDP":
        return
    fsdp = settings.get("fsdp_config") or {}
    if int(fsdp.get("fsdp_version", 1)) != 2:
        raise UserError(f"{name}: FSDP1 is not supported", "set fsdp_config.fsdp_version: 2")
    if fsdp.get("fsdp_activation_checkpointing") and stage.gradient_checkpointing:
        raise UserError(
            f"{name}: fsdp_activation_checkpointing beside the stage's gradient_checkpointing "
            "would checkpoint twice",
            "set fsdp_activation_checkpointing: false",
        )
    _quant(True, quant, f"{name}: FSDP")
