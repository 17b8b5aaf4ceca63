"""Training of the head: ``face-mllm exp-clip train CONFIG``, or torchrun for several processes.

Nothing is augmented, so both features of a face are constants: they are computed once and the head
then trains in seconds. :func:`train_exp_clip` is the table of contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from rich.console import Console
from torch import distributed

from face_mllm.distributed import on_main
from face_mllm.experts.exp_clip.artifact import save_expert
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.faces import (
    UnlabelledFaces,
    describe,
    student_features,
    teacher_features,
)
from face_mllm.experts.exp_clip.fit import check_batch, fit
from face_mllm.experts.exp_clip.loss import world
from face_mllm.experts.exp_clip.preflight import check_teacher_width
from face_mllm.experts.exp_clip.teachers import load_teacher
from face_mllm.experts.pixels import exp_clip_rule
from face_mllm.experts.preflight import checked_width
from face_mllm.features import FrozenClip
from face_mllm.hardware import for_precision, release_memory
from face_mllm.outputs import check_out
from face_mllm.progress import Progress, terminal_progress

console = Console(stderr=True)


def train_exp_clip(config: ExpClipConfig, progress: Progress | None = None) -> Path:
    """Train a head and write the expert folder ``config.out``.

    Raises:
        UserError: bad data or settings, before anything is computed where possible.
    """
    if progress is None:
        with terminal_progress("exp-clip") as told:
            return train_exp_clip(config, told)
    check_out(config.out)
    with process_group():
        if world()[0] > 0:  # one bar is enough
            progress = _silent
        faces = UnlabelledFaces(config.data, config.split, config.max_faces)
        check_batch(config, len(faces))
        if config.teacher.kind == "text":
            faces.check_captions()
        clip, student, target = features(config, faces, progress)
        fitted = fit(student, target, clip.logit_scale, config, progress)
        if world()[0] == 0:
            save_expert(fitted, config, clip, describe(faces))
            last = fitted.curve[-1]
            rate = fitted.faces_seen / max(fitted.seconds, 1e-9)
            console.print(
                f"[dim]loss {fitted.curve[0]['loss']:.3f} -> {last['loss']:.3f}, in-batch top-1 "
                f"{last['top1']:.1%}, {rate:,.0f} cached faces a second"
            )
    return config.out


def features(
    config: ExpClipConfig, faces: UnlabelledFaces, progress: Progress
) -> tuple[FrozenClip, torch.Tensor, torch.Tensor]:
    """The frozen CLIP, its features and the teacher's.

    The first process fills the store, where the others then find them; what stops it stops all.
    """
    made: list[tuple[FrozenClip, torch.Tensor, torch.Tensor]] = []
    on_main(lambda: made.append(_features(config, faces, progress)))
    return made[0] if made else _features(config, faces, progress)


def _features(
    config: ExpClipConfig, faces: UnlabelledFaces, progress: Progress
) -> tuple[FrozenClip, torch.Tensor, torch.Tensor]:
    check_teacher_width(config.teacher)
    hardware = for_precision(config.precision)
    clip = FrozenClip(config.clip, exp_clip_rule(config.paper_preprocess), device=hardware.device)
    checked_width(config.clip, clip.width, config.clip_width, "clip_width")
    student = student_features(clip, faces, config.features, progress)
    teacher = load_teacher(config.teacher, hardware, config.paper_preprocess)
    target = teacher_features(teacher, faces, config.features, progress)
    del teacher
    release_memory()
    return clip, student, target


def _silent(_done: int, _total: int, _text: str) -> None:
    """Progress of the other processes."""


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
