"""Pre-flight of a stage without training: every check that would otherwise fail hours in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from data_pipeline.records import read_manifest
from face_mllm.cluster import check_launch
from face_mllm.config import StageConfig
from face_mllm.configio import find_config, load_yaml_model
from face_mllm.errors import UserError
from face_mllm.hardware import Hardware, for_precision, usable_memory
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.options import check_options, check_trackers
from face_mllm.plan import (
    EFFICIENCY,
    Planned,
    Sheet,
    device_bytes,
    estimate_rows,
    estimate_table,
    fill_in_sheet,
    part_config,
    plan,
    planned_start,
)
from face_mllm.progress import notice
from face_mllm.references import EMBEDDED, is_cached, is_hub_id, resolve
from face_mllm.rows import FaceRows, RowCollator, model_inputs
from face_mllm.train import Kind, assemble, check_paths, config_kind, print_table

console = Console(stderr=True)
GPU = "A100-80GB"
GIB = 2**30


def validate(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    launch: Path | None = None,
    gpus: Sequence[int] = (1, 8, 64),
    meta: bool = False,
) -> None:
    """Check a stage config end to end and print an estimate of memory and time.

    Models that lie here and fit in memory run one batch; others are checked without weights, on
    the meta device, and nothing large is ever downloaded.

    Args:
        config: YAML path or shipped name.
        overrides: ``key=value`` pairs.
        launch: accelerate YAML the stage is to be launched with.
        gpus: numbers of GPUs to estimate for.
        meta: look at the config only: data, earlier artifacts and weights need not be here.

    Raises:
        UserError: at the first thing that would stop the run.
    """
    kind = config_kind(config)
    if kind != "mllm":
        validate_other(kind, config, overrides, meta)
        return
    stage = load_yaml_model(config, StageConfig, overrides)
    passed("keys and types")
    siblings = find_config(config).parent
    if not meta:
        check_inputs(stage)
    start = planned_start(stage, siblings)
    for words in check_launch(stage, launch, start.bases.llm_quant):
        passed(words)
    if meta or not loads_here(start):
        sheet = on_paper(stage, siblings, meta)
        print_estimate(stage, sheet, gpus)
        return
    hardware = for_precision(stage.precision)
    check_options(stage, hardware.device)
    notice("reading the models")
    _, model, processor = assemble(stage, hardware)
    passed(f"models load; a picture is {processor.image_tokens} image tokens")
    check_round_trip(processor)
    passed("tokenizer round trip, chat template, end of turn")
    sheet = fill_in_sheet(
        model, stage, start.bases.llm_quant, hardware.dtype, beside=start.expert_tokens
    )
    say_expert(stage, start)
    print_table(stage.stage, sheet.table)
    notice("one batch")
    seconds = one_batch(stage, hardware, model, processor)
    passed("one batch forward and backward")
    print_estimate(stage, sheet, gpus)
    print_here(stage, sheet, seconds)


def validate_other(
    kind: Kind, config: str | Path, overrides: Sequence[str], meta: bool = False
) -> None:
    """Check a config that trains something else: face-clip or an expert."""
    if kind == "face_clip":
        from face_mllm.face_clip.config import FaceClipConfig

        load_yaml_model(config, FaceClipConfig, overrides)
        passed("keys and types")
    elif kind == "mask_fer":
        from face_mllm.experts.mask_fer.config import MaskFerConfig
        from face_mllm.experts.mask_fer.preflight import preflight

        expert = load_yaml_model(config, MaskFerConfig, overrides)
        passed("keys and types")
        preflight(expert, passed, skipped, meta)
    else:
        from face_mllm.experts.exp_clip.config import ExpClipConfig
        from face_mllm.experts.exp_clip.preflight import preflight as preflight_head

        head = load_yaml_model(config, ExpClipConfig, overrides)
        passed("keys and types")
        preflight_head(head, passed, skipped, meta)


def passed(what: str) -> None:
    """Print one passed check."""
    console.print(f"[green]✓[/] {what}")


def skipped(what: str) -> None:
    """Print one check that could not be made here."""
    console.print(f"[yellow]–[/] {what}")  # noqa: RUF001


def loads_here(start: Planned) -> bool:
    """Whether both models lie on this machine and fit in its memory."""
    from huggingface_hub import try_to_load_from_cache

    needed = 0
    for reference, kind in ((start.bases.vision, "vision"), (start.bases.llm, "llm")):
        if is_hub_id(reference) and not Path(reference).is_dir():
            found = try_to_load_from_cache(reference.partition("@")[0], "config.json")
            folder = Path(found).parent if isinstance(found, str) else None
        else:
            absent = reference in EMBEDDED and not is_cached(reference)
            folder = None if absent else resolve(reference)
        if folder is None:
            console.print(f"[dim]{reference} is not here: checked without its weights")
            return False
        part_config(str(folder), kind)
        needed += sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if needed > usable_memory():
        console.print(f"[dim]{needed / GIB:.0f} GiB of weights: checked without them")
    return needed <= usable_memory()


def on_paper(stage: StageConfig, siblings: Path, meta: bool) -> Sheet:
    """Everything that can be said of a stage from its models' sizes."""
    check_trackers(stage.report_to)
    # what a GPU that this size needs would run; the shipped full-size configs leave it to `auto`
    small = stage.precision == "fp32"
    sheet, start = plan(stage, siblings, "float32" if small else "bfloat16", "sdpa")
    for part in ("vision", "llm"):
        reference = getattr(start.bases, part)
        passed(f"{part}: {reference}, {part_config(reference, part)[1]}")
    tokens = sheet.model.config.image_tokens
    most = getattr(sheet.model.config.text_config, "max_position_embeddings", None)
    if tokens + 64 > stage.max_tokens:
        raise UserError(
            f"max_tokens {stage.max_tokens} leaves no room behind {tokens} image tokens",
            f"set max_tokens to at least {tokens + 128}",
        )
    if most and stage.max_tokens > most:
        console.print(f"[yellow]note[/] the LLM was trained on {most} positions at most")
    passed(f"a picture is {tokens} image tokens, a row about {sheet.load.tokens} tokens")
    if start.adapters:
        held = ", ".join(sorted(start.adapters))
        passed(f"adapters of an earlier stage on: {held} ({start.source})")
    for part, words in start.fresh.items():
        passed(f"LoRA in the {part} part on {words}")
    say_expert(stage, start)
    print_table(stage.stage, sheet.table)
    if meta:
        console.print("[yellow]not checked[/] data, earlier artifacts, weights, tokenizer, a batch")
    return sheet


def check_inputs(stage: StageConfig) -> None:
    """Data, earlier artifact and expert are there, and the expert may say what it is asked to."""
    check_paths(stage)
    passed(f"paths; data holds {sum(split_counts(stage).values()):,} faces")


def say_expert(stage: StageConfig, start: Planned) -> None:
    """What the expert of the stage is, in lines."""
    for words in start.expert.words(stage.expert) if start.expert else ():
        passed(words)


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
        f"{int((batch['label_weights'] > 0).sum())} of them labelled in {count} faces"
    )
    return time.monotonic() - started


def print_estimate(stage: StageConfig, sheet: Sheet, gpus: Sequence[int]) -> None:
    """Print memory and time on GPUs."""
    rows = estimate_rows(sheet, gpus, gpu=GPU)
    title = f"{stage.stage}: a million questions, {sheet.questions} a face"
    console.print(estimate_table(rows, title))
    console.print(
        f"[dim]GiB a GPU: weights, states and activations by formula, without the allocator's "
        f"reserve; hours on {GPU} at {EFFICIENCY:.0%} of the peak, without communication"
    )


def print_here(stage: StageConfig, sheet: Sheet, seconds: float) -> None:
    """Print memory and time of the whole stage on this machine."""
    needed = device_bytes(sheet, "ddp", 1) / GIB
    steps = stage_steps(stage)
    hours = steps * stage.accumulation * seconds / 3600
    console.print(
        f"here: {needed:.2f} GiB (free {usable_memory() / GIB:.1f}); {steps:,} steps of "
        f"{seconds * stage.accumulation:.1f} s: about {hours:.2f} h"
    )


def stage_steps(stage: StageConfig) -> int:
    """Optimiser steps of the stage in one process."""
    if stage.max_steps > 0:
        return stage.max_steps
    faces = split_counts(stage).get("train", 0)
    return max(1, int(faces * stage.epochs / (stage.faces_per_device * stage.accumulation)))
