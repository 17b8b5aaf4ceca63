"""One training stage: ``face-mllm train CONFIG`` = ``accelerate launch -m face_mllm.train CONFIG``.

:func:`train` is the table of contents; follow it line by line to see a sample go from disk to loss.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from data_pipeline.manifest import protocols_of
from data_pipeline.records import read_manifest
from face_mllm import distributed
from face_mllm.artifact import (
    QUESTIONS_FILE,
    Artifact,
    load_weights,
    package_versions,
    read_artifact,
    save_artifact,
)
from face_mllm.asked import asked_questions
from face_mllm.checkpoints import check_finite, last_good
from face_mllm.compose import Bases, compose
from face_mllm.config import StageConfig
from face_mllm.configio import load_yaml_model
from face_mllm.curriculum import curriculum_of
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import expert_rates, expert_trainings
from face_mllm.frozen import cache_vision
from face_mllm.hardware import Hardware, data_workers, for_precision
from face_mllm.lexical import warm_start
from face_mllm.meter import RunMeter
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.attention import use_attention
from face_mllm.model.processing import FaceProcessor
from face_mllm.model_card import base_licences, data_sources
from face_mllm.options import check_options, switch_on, trackers
from face_mllm.outputs import check_out
from face_mllm.progress import Progress
from face_mllm.rows import FaceRows, RowCollator
from face_mllm.stages import PartRow, apply_freeze, ensure_lora
from face_mllm.trainer import (
    METRICS_FILE,
    MetricsLog,
    TreeTrainer,
    training_arguments,
)
from face_mllm.verify import verify_packing

console = Console(stderr=True)


Kind = Literal["mllm", "face_clip", "exp_clip", "mask_fer"]


class _AnyKind(BaseModel):
    model_config = ConfigDict(extra="allow")
    kind: Kind = "mllm"


def main(
    config: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None
) -> Path:
    """Run the training a config names; returns the folder written.

    Args:
        config: YAML path or shipped name; its ``kind`` chooses what is trained.
        overrides: ``key=value`` pairs.
        progress: called with (step, steps, text).
    """
    kind = config_kind(config)
    if kind == "face_clip":
        from face_mllm.face_clip.config import FaceClipConfig
        from face_mllm.face_clip.train import train_face_clip

        return train_face_clip(load_yaml_model(config, FaceClipConfig, overrides), progress)
    if kind == "mask_fer":
        from face_mllm.experts.mask_fer.config import MaskFerConfig
        from face_mllm.experts.mask_fer.train import train_mask_fer

        return train_mask_fer(load_yaml_model(config, MaskFerConfig, overrides), progress)
    if kind == "exp_clip":
        from face_mllm.experts.exp_clip.config import ExpClipConfig
        from face_mllm.experts.exp_clip.train import train_exp_clip

        return train_exp_clip(load_yaml_model(config, ExpClipConfig, overrides), progress)
    return train(load_yaml_model(config, StageConfig, overrides), progress)


def config_kind(config: str | Path) -> Kind:
    """What a config trains."""
    return load_yaml_model(config, _AnyKind).kind


def train(config: StageConfig, progress: Progress | None = None) -> Path:
    """Train one stage and write its artifact; an interrupted run goes on at its last checkpoint.

    Args:
        config: the stage.
        progress: called with (step, steps, text) after each optimiser step.

    Raises:
        UserError: on anything the user can mend, before training starts where possible.
    """
    distributed.join(config.deepspeed, config.timeout)
    progress = progress if distributed.is_main() else None
    check_paths(config)
    set_seed(config.seed)
    hardware = for_precision(config.precision)
    config = config.model_copy(update={"workers": data_workers(config.workers, hardware.device)})
    say(f"[dim]{hardware.describe()}")
    check_options(config, hardware.device)
    artifact, model, processor = assemble(config, hardware)
    table = apply_freeze(model, config)
    print_table(config.stage, table)
    for words in switch_on(config, model.language_model):
        say(f"[dim]{words}")
    rows = FaceRows.from_stage(config, processor)
    checkpoint = distributed.on_main(lambda: last_good(run_folder(config), config.resume, say))
    if config.projector.lexical_steps and checkpoint is None:
        steps = config.projector.lexical_steps
        warm_start(model, processor, rows.all_records(), steps, config.seed, progress)
    trainer = build_trainer(config, hardware, artifact, model, processor, rows, progress)
    if config.cache_features:
        cache_vision(trainer.model, processor, rows, trainer.accelerator, progress)
    if rows.expert:
        rows.expert.fill(rows, trainer.accelerator, progress)
    if config.verify_packing:
        verify_packing(trainer.model, processor, trainer.data_collator, rows, config, hardware)
    if checkpoint is None:
        distributed.seed_process(config.seed)  # parts began alike, dropout must not go on alike
    with distributed.peers_watched("the last checkpoint is kept, the same command goes on there"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    folder = finish(config, trainer, artifact, processor)
    if artifact.expert and artifact.expert.fusion:
        from face_mllm.experts.joined.fuse import fuse_stage

        fuse_stage(config, trainer, processor, hardware.autocast, progress)
    return folder


def check_paths(config: StageConfig) -> None:
    """Refuse a run whose output exists or whose input does not, before anything is loaded."""
    check_out(config.out)
    manifest = read_manifest(config.data)
    if not any(config.data.glob("train-*.parquet")):
        raise UserError(f"{config.data}: no train split", "build the dataset with one")
    previous = read_artifact(config.init_from) if config.init_from else None
    if previous is not None:
        check_held_out(config, previous, manifest)
    inherited = previous.expert if previous else None
    if config.expert or inherited:
        from face_mllm.experts.joined.join import stage_expert

        stage_expert(config.expert, inherited, config.init_from, config.data)


def check_held_out(config: StageConfig, previous: Artifact, manifest: dict[str, Any]) -> None:
    """A zero-shot test only stands if every stage held out the same attributes."""
    if not previous.chain:
        return
    before = set(previous.chain[-1].get("held_out") or ())
    now = set(manifest.get("holdout_attributes") or ())
    if before - now:
        raise UserError(
            f"{config.data}: does not hold out {sorted(before - now)} as {config.init_from} did",
            "build every stage's data with the same holdout_attributes",
        )


def assemble(
    config: StageConfig, hardware: Hardware
) -> tuple[Artifact, FaceMLLMForConditionalGeneration, FaceProcessor]:
    """Model and processor of the stage: fresh, or the previous stage's with its settings."""
    previous = read_artifact(config.init_from) if config.init_from else None
    bases = stage_bases(config, previous)
    model, processor, bases = compose(bases, hardware.torch_dtype, config.seed)
    use_attention(model.language_model, config.attention, hardware.device)
    artifact = Artifact(bases)
    if previous and config.init_from:
        artifact = dataclasses.replace(previous, bases=bases)
    if config.expert or artifact.expert:
        from face_mllm.experts.joined.join import join_stage

        artifact = join_stage(config, artifact, model, processor)
    if previous and config.init_from:
        load_weights(model, artifact, config.init_from)
    artifact.trained = sorted({*artifact.trained, *expert_trainings(model, config.expert)})
    trainings = config.part_trainings()
    for part, settings in (("llm", config.llm.lora), ("vision", config.vision.lora)):
        if trainings[part] == "lora":
            say(f"[dim]{ensure_lora(model, artifact.adapters, settings, part)}")
            artifact.adapters = sorted({*artifact.adapters, part})
        elif trainings[part] == "full" and part in artifact.adapters:
            raise UserError(
                f"{part}.train: full after LoRA", f"keep {part}.train: lora in later stages"
            )
    full = [part for part in trainings if trainings[part] == "full"]
    artifact.trained = sorted({*artifact.trained, *full})
    return artifact, model, processor


def stage_bases(config: StageConfig, previous: Artifact | None) -> Bases:
    """Bases of the stage; says which settings are inherited and which overridden."""
    given = {
        "vision": absolute(config.vision.model),
        "llm": absolute(config.llm.model),
        "system": config.system,
        "llm_quant": config.llm.quant,
    }
    if previous is None:
        return Bases(
            vision=given["vision"] or "",
            llm=given["llm"] or "",
            vision_layer=config.vision.layer,
            vision_select=config.vision.select,
            projector_hidden=config.projector.hidden,
            system=config.system or "",
            llm_quant=config.llm.quant or "none",
        )
    changes: dict[str, Any] = {}
    for key, value in given.items():
        inherited = getattr(previous.bases, key)
        if value is not None and value != inherited:
            changes[key] = value
        source = "overridden" if key in changes else "inherited"
        say(f"[dim]{key}: {value if key in changes else inherited} ({source})")
    return dataclasses.replace(previous.bases, **changes)


def absolute(reference: str | None) -> str | None:
    """Local folders as absolute paths, so an artifact loads from anywhere."""
    if reference and not reference.startswith("embedded:") and Path(reference).is_dir():
        return str(Path(reference).resolve())
    return reference


def print_table(stage: str, rows: list[PartRow]) -> None:
    """Print the freeze table."""
    table = Table(title=f"{stage}: what trains")
    for column in ("part", "training", "trainable", "parameters"):
        table.add_column(column, justify="left" if column in ("part", "training") else "right")
    for row in rows:
        table.add_row(row.part, row.training, f"{row.trainable:,}", f"{row.total:,}")
    say(table)


def say(what: Any) -> None:
    """Print to the screen, once for all processes."""
    if distributed.is_main():
        console.print(what)


def run_folder(config: StageConfig) -> Path:
    """Where checkpoints and metrics live until the artifact is whole."""
    return config.out.with_name(f"{config.out.name}.run")


def build_trainer(
    config: StageConfig,
    hardware: Hardware,
    artifact: Artifact,
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    rows: FaceRows,
    progress: Progress | None,
) -> TreeTrainer:
    """Trainer with the stage's settings."""
    run = run_folder(config)
    run.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "seed": config.seed,
        "data_seed": config.seed,
        "max_steps": config.max_steps,
        "num_train_epochs": 1,  # FaceRows holds the rows of all epochs
        "per_device_train_batch_size": config.faces_per_device,
        "gradient_accumulation_steps": config.accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": config.schedule,
        "weight_decay": config.weight_decay,
        "adam_beta2": 0.99,
        "max_grad_norm": config.max_grad_norm,
        "bf16": hardware.autocast,
        "activation_checkpointing": config.gradient_checkpointing,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.keep_checkpoints,
        "logging_steps": config.log_steps,
        "report_to": [name for name in config.report_to if name != "tensorboard"],
        "dataloader_num_workers": config.workers or 0,
        "ddp_find_unused_parameters": config.vision.train != "frozen",  # layers past the one read
        "ddp_timeout": int(config.timeout),
    }
    return TreeTrainer(
        model=model,
        args=training_arguments(settings, run),
        train_dataset=rows,
        data_collator=RowCollator.from_stage(config, model, processor),
        callbacks=[MetricsLog(run / METRICS_FILE, progress), *trackers(config)],
        artifact=artifact,
        part_rates=config.part_rates() | expert_rates(config.expert, config.learning_rate),
        update=config.optimizer,
        order=data_order(config) | (rows.expert.order() if rows.expert else {}),
        bf16=hardware.autocast,
        meter=RunMeter.from_stage(config, hardware, model, rows.tasks),
        rows_per_pass=config.rows_per_pass,
        curriculum=curriculum_of(config, rows),
    )


def data_order(config: StageConfig) -> dict[str, Any]:
    """What decides which faces and questions a step sees; it must not change within a run."""
    keys = ("data", "seed", "tasks", "max_questions_per_face", "max_tokens", "curriculum")
    given = json.loads(config.model_dump_json())
    faces = config.faces_per_device * config.accumulation * distributed.world()
    return {**{key: given[key] for key in keys}, "faces_per_step": faces}


def finish(
    config: StageConfig, trainer: TreeTrainer, artifact: Artifact, processor: FaceProcessor
) -> Path:
    """Write the artifact and remove the run folder."""
    report = trainer.end_of_run()
    weights = trainer.whole_weights()
    distributed.on_main(
        lambda: write_artifact(config, trainer, artifact, processor, weights, report)
    )
    return config.out


def write_artifact(
    config: StageConfig,
    trainer: TreeTrainer,
    artifact: Artifact,
    processor: FaceProcessor,
    weights: dict[str, torch.Tensor],
    report: dict[str, float],
) -> None:
    """Write the stage's artifact from the trained weights and the run's speed, on one process."""
    check_finite(weights, trainer.state.global_step)
    run = run_folder(config)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    manifest = read_manifest(config.data)
    entry = {
        "stage": config.stage,
        "config": json.loads(config.model_dump_json()),
        "data": str(config.data),
        "data_fingerprint": manifest_fingerprint(manifest),
        "protocols": protocols_of(manifest),
        "held_out": manifest.get("holdout_attributes") or [],
        "faces": manifest.get("faces", "none"),
        "steps": trainer.state.global_step,
        "first_loss": losses[0] if losses else float("nan"),
        "last_loss": losses[-1] if losses else float("nan"),
        "versions": package_versions(),
        "speed": report,
        "sources": data_sources(manifest),
        "licences": base_licences(artifact.bases),
    }
    artifact = dataclasses.replace(artifact, chain=[*artifact.chain, entry])
    files = {METRICS_FILE: (run / METRICS_FILE).read_text()}
    files[QUESTIONS_FILE] = json.dumps(asked_questions(config.data, manifest), indent=1)
    files["stage_config.yaml"] = yaml.safe_dump(entry["config"], sort_keys=False)
    model = trainer.accelerator.unwrap_model(trainer.model)
    save_artifact(model, processor, artifact, config.out, state=weights, extra_files=files)
    shutil.rmtree(run)


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest: equal data, equal fingerprint."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except UserError as error:
        console.print(f"[red]error:[/] {error}")
        sys.exit(2)
