"""Training of mask-FER: ``face-mllm mask-fer train stage_configs/mask_fer.yaml``.

:func:`train_mask_fer` is the table of contents. Every random choice of a step comes from
(seed, step), so an interrupted run goes on as if it had not been.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data_pipeline.records import read_manifest, whole_folder
from eval import metrics
from face_mllm.artifact import package_versions
from face_mllm.errors import UserError
from face_mllm.experts.mask_fer.card import model_card
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.experts.mask_fer.faces import ExpressionFaces, load_training, source_names
from face_mllm.experts.mask_fer.inputs import Inputs
from face_mllm.experts.mask_fer.losses import draw_channels
from face_mllm.experts.mask_fer.model import losses
from face_mllm.experts.mask_fer.state import flat_state, restore
from face_mllm.flat_state import load_state, save_state
from face_mllm.hardware import Hardware, for_precision
from face_mllm.outputs import check_out
from face_mllm.progress import Progress, terminal_progress
from face_mllm.train import manifest_fingerprint

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
# settings that may change when a run goes on
FREE_TO_CHANGE = {"out", "resume", "save_steps", "epochs", "max_steps", "picture_memory_gib"}

console = Console(stderr=True)


def train_mask_fer(
    config: MaskFerConfig, progress: Progress | None = None, cache: Path | None = None
) -> Path:
    """Train, choose the epoch on validation faces, write the artifact ``config.out``.

    Args:
        config: see :class:`MaskFerConfig`.
        progress: called with (done, total, text); a bar on stderr if not given.
        cache: folder of the feature cache; the user's if not given.

    Raises:
        UserError: bad data or settings, before training starts where possible.
    """
    check_out(config.out)
    check_alone()
    if progress is None:
        with terminal_progress("mask-fer") as told:
            return train_mask_fer(config, told, cache)
    hardware = for_precision(config.precision)
    console.print(f"[dim]{hardware.describe()}")
    faces = load_training(config.data, config.classes, config.remap, config.val_share)
    run = Run(config, hardware, *faces, cache)
    run.prepare(progress)
    run.resume()
    while run.step < run.steps:
        text = run.advance()
        progress(run.step, run.steps, text)
    run.write()
    shutil.rmtree(run.folder, ignore_errors=True)
    return config.out


def check_alone() -> None:
    """Refuse a launch with several processes: each would train the same run into one folder.

    Raises:
        UserError: there are others.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UserError(
            f"mask-FER trains in one process, {processes} were started",
            "run `face-mllm mask-fer train CONFIG` without torchrun or accelerate",
        )


class Run:
    """One training run: model, optimiser, the best epoch so far, and how a step is made.

    Args:
        config: the settings.
        hardware: device and number format of the mask network.
        train: training faces.
        val: faces the epoch is chosen on.
        cache: folder of the feature cache.
    """

    def __init__(
        self,
        config: MaskFerConfig,
        hardware: Hardware,
        train: ExpressionFaces,
        val: ExpressionFaces,
        cache: Path | None = None,
    ) -> None:
        if len(train) < config.batch_size:
            raise UserError(f"{len(train)} training faces", "lower batch_size or add faces")
        self.config, self.hardware, self.train, self.val = config, hardware, train, val
        self.manifest = read_manifest(config.data)
        self.data_fingerprint = manifest_fingerprint(self.manifest)
        self.folder = config.out.with_name(f"{config.out.name}.run")
        self.per_epoch = len(train) // config.batch_size
        self.steps = config.max_steps if config.max_steps > 0 else config.epochs * self.per_epoch
        self.expert = MaskFerExpert.fresh(config, hardware.device)
        self.model = self.expert.model
        clip, eye = self.expert.clip, self.expert.eye
        most = config.picture_memory_gib * 2**30 / 2
        self.inputs = Inputs(train, clip, eye, most, cache)
        self.val_inputs = Inputs(val, clip, eye, most, cache)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.best: tuple[float, dict[str, torch.Tensor]] = (-1.0, {})
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute the frozen features that stay the same."""
        self.val_inputs.compute(False, progress)
        if self.config.clip.features == "cached":
            for mirror in (False, True):
                self.inputs.compute(mirror, progress)

    def advance(self) -> str:
        """Make one optimiser step, and close the epoch after its last; returns a line about it."""
        started = time.perf_counter()
        config, device = self.config, self.hardware.device
        epoch = self.step // self.per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * config.gamma**epoch
        rows = self._rows(epoch)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        keep = self._channels(len(rows), generator).to(device)
        features, seen = self.inputs.spoilt(rows, config.augment, generator)
        self.model.train()
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=self.hardware.autocast):
            x = self.model.masked(features.to(device), None if seen is None else seen.to(device))
        made = losses(self.model, x, self.train.targets[rows].to(device), keep, config.loss)
        self._check(made.total)
        self.optimizer.zero_grad(set_to_none=True)
        made.total.backward()
        self.optimizer.step()
        self.step += 1
        for name, value in made.numbers().items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.seconds += time.perf_counter() - started
        if self.step % self.per_epoch == 0 or self.step == self.steps:
            self._close_epoch(epoch)
        return f"training, loss {made.total.item():.3f}"

    def _rows(self, epoch: int) -> list[int]:
        """Rows of this step: a fresh order each epoch, the odd end of an epoch left out."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 7919 + epoch)
            self._order = (epoch, torch.randperm(len(self.train), generator=generator))
        start = self.step % self.per_epoch * self.config.batch_size
        return self._order[1][start : start + self.config.batch_size].tolist()

    def _channels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        loss, model = self.config.loss, self.model
        samples = count if loss.drop_per_sample else 1
        return draw_channels(model.classes, model.channels, loss.drop, generator, samples)

    def _check(self, total: torch.Tensor) -> None:
        if not torch.isfinite(total):
            raise UserError(
                f"loss became {total.item()} at step {self.step}",
                "lower learning_rate or set precision: fp32; the last checkpoint is kept",
            )

    def _close_epoch(self, epoch: int) -> None:
        """Measure on validation faces, keep the best, write a checkpoint."""
        steps = self.step - epoch * self.per_epoch
        scores = self.measure()
        means = {name: total / steps for name, total in self.sums.items()}
        self.log.append({"epoch": epoch, "step": self.step, **means, **scores})
        self.sums = {}
        if self.config.select == "last" or scores["val_uar"] > self.best[0]:
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = (scores["val_uar"], state)
        every = self.config.save_steps
        if every and (epoch + 1) % every == 0 and self.step < self.steps:
            self.save()

    def measure(self) -> dict[str, float]:
        """UAR and WAR on the validation faces."""
        answers = self.expert.answer_all(self.val_inputs, len(self.val))
        truth, guess = self.val.targets.double().numpy(), answers.argmax(-1).double().numpy()
        nobody = torch.zeros(len(truth), dtype=torch.long).numpy()
        counts = metrics.confusion_by_subject(truth, guess, self.model.classes, nobody, 1)[0]
        return {"val_uar": float(metrics.uar(counts)), "val_war": float(metrics.war(counts))}

    def save(self) -> None:
        """Write a checkpoint whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        flat = flat_state(self.model, self.optimizer, self.best[1])
        about = {
            "config": self._fixed(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "best": self.best[0],
        }
        save_state(self.folder / CHECKPOINT, flat, about)

    def resume(self) -> None:
        """Go on at the checkpoint ``resume`` means, if there is one.

        Raises:
            UserError: a checkpoint of other settings, or none where one was named.
        """
        given = self.config.resume
        path = self.folder / CHECKPOINT if given == "auto" else Path(given).expanduser()
        if given == "never" or (given == "auto" and not path.exists()):
            return
        flat, about = load_state(path, "mask-FER")
        before = about.get("config")
        if not isinstance(before, dict) or before.get("kind") != self.config.kind:
            raise UserError(
                f"{path}: not a mask-FER checkpoint",
                "set resume: never to start anew, or give the right file",
            )
        changed = [key for key, value in self._fixed().items() if before.get(key) != value]
        if changed:
            raise UserError(
                f"{path} was trained with other settings of {', '.join(changed)}",
                "set them back, set resume: never, or choose another out",
            )
        best = restore(flat, self.model, self.optimizer)
        self.step, self.seconds, self.log = about["step"], about["seconds"], about["log"]
        self.best = (about["best"], best)
        console.print(f"[dim]going on after step {self.step}")

    def _fixed(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude=FREE_TO_CHANGE)
        clip = self.expert.clip.fingerprint
        return {**settings, "clip_fingerprint": clip, "data_fingerprint": self.data_fingerprint}

    def write(self) -> None:
        """Write the artifact of the chosen epoch whole or not at all."""
        config = self.config
        self.model.load_state_dict(self.best[1])
        chosen = max(self.log, key=lambda line: line["val_uar"])
        self.expert.training = {
            "config": config.model_dump(mode="json"),
            "data": str(config.data),
            "data_fingerprint": self.data_fingerprint,
            "sources": source_names(self.manifest),
            "faces": {"train": len(self.train), "val": len(self.val)},
            "class_counts": self.train.targets.bincount(minlength=len(config.classes)).tolist(),
            "left_out": dict(self.train.left_out),
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "hardware": self.hardware.describe(),
            "chosen": chosen if config.select == "val" else self.log[-1],
            "versions": package_versions(),
        }
        with whole_folder(config.out) as partial:
            self.expert.save(partial)
            lines = "".join(json.dumps(line) + "\n" for line in self.log)
            (partial / METRICS).write_text(lines)
            (partial / "README.md").write_text(model_card(self.expert))
