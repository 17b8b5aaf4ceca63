"""Training of the head: ``face-mllm exp-clip train CONFIG``, or torchrun for several processes.

Nothing is augmented, so both features of a face are constants: they are computed once and the head
then trains in seconds. :func:`train` is the table of contents.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from torch import distributed

from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.artifact import save_expert
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.faces import (
    UnlabelledFaces,
    describe,
    student_features,
    teacher_features,
)
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.loss import contrast, sum_gradients, world
from face_mllm.experts.exp_clip.pixels import clip_rule, frozen_scale
from face_mllm.experts.exp_clip.teachers import load_teacher
from face_mllm.experts.features import FrozenClip
from face_mllm.hardware import for_precision, release_memory
from face_mllm.progress import Progress, quiet_libraries, terminal_progress

console = Console(stderr=True)


@dataclass
class Fit:
    """A trained head with its curve.

    Args:
        head: the last epoch's weights; nothing is selected.
        curve: one entry per logged step: step, loss, top1 (own teacher first in the batch).
        seconds: of the steps alone.
        faces_seen: by all steps together.
    """

    head: ExpClipHead
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    faces_seen: int = 0


def main(
    config: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None
) -> Path:
    """Read a config and train; returns the folder written."""
    return train(load_yaml_model(config, ExpClipConfig, overrides), progress)


def train(config: ExpClipConfig, progress: Progress | None = None) -> Path:
    """Train a head and write the expert folder ``config.out``.

    Raises:
        UserError: bad data or settings, before anything is computed where possible.
    """
    if progress is None:
        with terminal_progress("exp-clip") as told:
            return train(config, told)
    if config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"{config.out} already holds files", "remove it or set another out")
    with process_group():
        faces = UnlabelledFaces(config.data, config.split, config.max_faces)
        check_batch(config, len(faces))
        clip, student, target = features(config, faces, progress)
        fitted = fit(student, target, frozen_scale(clip), config, progress)
        if world()[0] == 0:
            save_expert(fitted, config, clip, describe(faces))
            last = fitted.curve[-1]
            rate = fitted.faces_seen / max(fitted.seconds, 1e-9)
            console.print(
                f"[dim]loss {fitted.curve[0]['loss']:.3f} -> {last['loss']:.3f}, in-batch top-1 "
                f"{last['top1']:.1%}, {rate:,.0f} cached faces a second"
            )
    return config.out


def check_batch(config: ExpClipConfig, faces: int) -> None:
    """Refuse a batch that leaves no step or does not part evenly over the processes."""
    processes = world()[1]
    if faces < config.batch_size:
        raise UserError(
            f"{faces} faces are fewer than batch_size {config.batch_size}; odd ends are dropped",
            "lower batch_size or add faces",
        )
    if config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} does not part evenly over {processes} processes",
            "choose a multiple of the number of processes",
        )


def features(
    config: ExpClipConfig, faces: UnlabelledFaces, progress: Progress
) -> tuple[FrozenClip, torch.Tensor, torch.Tensor]:
    """The frozen CLIP, its features and the teacher's; the first process fills the store."""
    rank, processes = world()
    if processes > 1 and rank > 0:
        distributed.barrier()
    hardware = for_precision(config.precision)
    clip = FrozenClip(config.clip, clip_rule(config.paper_preprocess), device=hardware.device)
    student = student_features(clip, faces, config.features, progress)
    teacher = load_teacher(config.teacher, hardware, config.paper_preprocess)
    target = teacher_features(teacher, faces, config.features, progress)
    del teacher
    release_memory()
    if processes > 1 and rank == 0:
        distributed.barrier()
    return clip, student, target


def fit(
    student: torch.Tensor,
    target: torch.Tensor,
    scale: float,
    config: ExpClipConfig,
    progress: Progress | None = None,
) -> Fit:
    """Train a fresh head on cached features with SGD at a constant rate, as the paper.

    Args:
        student: CLIP features [N, D].
        target: teacher features [N, T].
        scale: CLIP's inverse temperature, frozen.
        config: epochs, batch_size, learning_rate, momentum, weight_decay, seed.

    Returns:
        The head after the last epoch; the same on every process.
    """
    head = ExpClipHead(student.shape[1], target.shape[1], config.seed)
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    fitted, steps = Fit(head), config.epochs * (len(student) // config.batch_size)
    for step, rows in enumerate(batches(len(student), config), 1):
        started = time.perf_counter()
        found = contrast(head(student[rows].float()), target[rows].float(), scale)
        optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        sum_gradients(head)
        optimizer.step()
        fitted.seconds += time.perf_counter() - started
        fitted.faces_seen += config.batch_size
        if step % config.log_steps == 0 or step in (1, steps):
            entry = {"step": step, "loss": found.loss.item(), "top1": found.top1.item()}
            _check_finite(entry)
            fitted.curve.append(entry)
            if progress:
                progress(step, steps, f"training the head, loss {entry['loss']:.3f}")
    head.eval()
    return fitted


def batches(faces: int, config: ExpClipConfig) -> Iterator[torch.Tensor]:
    """Rows of this process, step by step: a fresh order each epoch, the odd end left out.

    The processes' rows together, in order of rank, are the rows one process would take.
    """
    rank, processes = world()
    share = config.batch_size // processes
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 7919 + epoch)
        order = torch.randperm(faces, generator=generator)
        for start in range(0, faces - config.batch_size + 1, config.batch_size):
            first = start + rank * share
            yield order[first : first + share]


def _check_finite(entry: dict[str, float]) -> None:
    if not torch.isfinite(torch.tensor(entry["loss"])):
        raise UserError(
            f"loss became {entry['loss']} at step {entry['step']:.0f}", "lower learning_rate"
        )


@contextmanager
def process_group() -> Iterator[None]:
    """A gloo group where torchrun or accelerate started several processes, else nothing."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized()
    if several:
        distributed.init_process_group("gloo", timeout=timedelta(hours=24))
    try:
        yield
    finally:
        if several:
            distributed.destroy_process_group()


if __name__ == "__main__":  # torchrun -m face_mllm.experts.exp_clip.train CONFIG [key=value ...]
    quiet_libraries()
    try:
        main(sys.argv[1], sys.argv[2:])
    except UserError as error:
        console.print(f"[red]error:[/] {error}")
        sys.exit(2)
