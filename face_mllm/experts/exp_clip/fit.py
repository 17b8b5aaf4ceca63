"""The optimisation: a fresh head on cached features, seconds on a CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.loss import contrast, sum_gradients, world
from face_mllm.progress import Progress


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
    if not math.isfinite(entry["loss"]):
        raise UserError(
            f"loss became {entry['loss']} at step {entry['step']:.0f}", "lower learning_rate"
        )


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
