"""Pre-flight of a stage without training: every check that would otherwise fail hours in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from data_pipeline.records import read_manifest
from face_mllm.config import StageConfig
from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError
from face_mllm.hardware import Hardware, for_precision, usable_memory
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.rows import FaceRows, RowCollator, model_inputs
from face_mllm.stages import PartRow, apply_freeze
from face_mllm.train import assemble, check_paths, config_kind, print_table

console = Console(stderr=True)
OPTIMISER_BYTES = 16  # fp32 weight, gradient and AdamW's two moments of each trained parameter


def validate(config: str | Path, overrides: Sequence[str] = ()) -> None:
    """Check a stage config end to end and print an estimate of memory and time.

    Args:
        config: YAML path or shipped name.
        overrides: ``key=value`` pairs.

    Raises:
        UserError: at the first thing that would stop the run.
    """
    kind = config_kind(config)
    if kind == "face_clip":
        from face_mllm.face_clip.config import FaceClipConfig

        load_yaml_model(config, FaceClipConfig, overrides)
        passed("keys and types")
        return
    if kind == "mask_fer":
        from face_mllm.experts.mask_fer.config import MaskFerConfig
        from face_mllm.experts.mask_fer.preflight import preflight

        expert = load_yaml_model(config, MaskFerConfig, overrides)
        passed("keys and types")
        preflight(expert, passed, skipped)
        return
    if kind == "exp_clip":
        from face_mllm.experts.exp_clip.config import ExpClipConfig
        from face_mllm.experts.exp_clip.preflight import preflight as preflight_head

        head = load_yaml_model(config, ExpClipConfig, overrides)
        passed("keys and types")
        preflight_head(head, passed, skipped)
        return
    stage = load_yaml_model(config, StageConfig, overrides)
    passed("keys and types")
    check_paths(stage)
    passed(f"paths; data holds {sum(split_counts(stage).values()):,} faces")
    hardware = for_precision(stage.precision)
    _, model, processor = assemble(stage, hardware)
    passed(f"models load; a picture is {processor.image_tokens} image tokens")
    check_round_trip(processor)
    passed("tokenizer round trip, chat template, end of turn")
    table = apply_freeze(model, stage)
    print_table(stage.stage, table)
    seconds = one_batch(stage, hardware, model, processor)
    passed("one batch forward and backward")
    print_estimate(stage, table, seconds)


def passed(what: str) -> None:
    """Print one passed check."""
    console.print(f"[green]✓[/] {what}")


def skipped(what: str) -> None:
    """Print one check that could not be made here."""
    console.print(f"[yellow]–[/] {what}")  # noqa: RUF001


def split_counts(stage: StageConfig) -> dict[str, int]:
    """Faces per split, from the manifest."""
    splits = read_manifest(stage.data).get("splits", {})
    return {split: int(about["faces"]) for split, about in splits.items()}


def check_round_trip(processor: FaceProcessor) -> None:
    """A question and its answer must come back from their ids unharmed."""
    question, answer = "Is AU12 active?", "yes"
    tokens, start = processor.branch_ids(question, answer)
    said = processor.tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
    asked = processor.tokenizer.decode(tokens[:start], skip_special_tokens=True)
    if said != answer or question not in asked:
        raise UserError(
            f"the tokenizer turns {question!r} -> {answer!r} into {asked!r} -> {said!r}",
            "use a tokenizer that decodes what it encodes",
        )
    if tokens[-1] != processor.tokenizer.eos_token_id:
        raise UserError("answers do not end in the end-of-turn token", "set eos_token")


def one_batch(
    stage: StageConfig,
    hardware: Hardware,
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
) -> float:
    """Run the first batch through loss and gradients; return its seconds."""
    rows = FaceRows.from_stage(stage, processor)
    count = min(stage.faces_per_device, rows.faces)
    batch = RowCollator.from_stage(stage, model, processor)([rows[visit] for visit in range(count)])
    batch = {key: value.to(hardware.device) for key, value in batch.items()}
    model.to(hardware.device).train()
    started = time.monotonic()
    kind = hardware.device.split(":")[0]
    with torch.autocast(kind, torch.bfloat16, enabled=hardware.autocast):
        loss = model(**model_inputs(batch)).loss / batch["label_weights"].sum()
    loss.backward()
    if not torch.isfinite(loss):
        raise UserError(f"the first loss is {loss.item()}", "set precision: fp32")
    console.print(
        f"[dim]first loss {loss.item():.3f}; {batch['input_ids'].shape[1]} tokens a row, "
        f"{len(batch['label_rows'])} of them labelled in {count} faces"
    )
    return time.monotonic() - started


def print_estimate(stage: StageConfig, table: list[PartRow], seconds: float) -> None:
    """Print memory and time of the whole stage."""
    trained = sum(row.trainable for row in table)
    frozen = sum(row.total - row.trainable for row in table)
    weights = (trained * OPTIMISER_BYTES + frozen * 2) / 2**30
    steps = stage_steps(stage)
    hours = steps * stage.accumulation * seconds / 3600
    console.print(
        f"weights and optimiser {weights:.2f} GiB (free here {usable_memory() / 2**30:.1f}), "
        f"plus activations; {steps:,} steps of {seconds * stage.accumulation:.1f} s "
        f"on this machine: about {hours:.2f} h"
    )


def stage_steps(stage: StageConfig) -> int:
    """Optimiser steps of the stage in one process."""
    if stage.max_steps > 0:
        return stage.max_steps
    faces = split_counts(stage).get("train", 0)
    return max(1, int(faces * stage.epochs / (stage.faces_per_device * stage.accumulation)))
