"""What can be checked of an Exp-CLIP config without training, and without what is not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from face_mllm.artifact import read_artifact
from face_mllm.errors import UserError, brief
from face_mllm.experts.exp_clip.config import ExpClipConfig, TeacherConfig
from face_mllm.experts.exp_clip.faces import UnlabelledFaces
from face_mllm.experts.exp_clip.fit import check_batch
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.pixels import exp_clip_rule
from face_mllm.experts.preflight import CONFIG_ONLY, Say, checked_width, here
from face_mllm.features import FrozenClip
from face_mllm.references import resolve


def preflight(config: ExpClipConfig, passed: Say, skipped: Say, meta: bool = False) -> None:
    """Check shapes, data and models.

    Args:
        config: valid by its keys and types.
        passed: told of each check that was made.
        skipped: told of each that was not, because its data or model is not on this machine.
        meta: look at the config only; models and data need not be here.

    Raises:
        UserError: at the first thing that would stop the run.
    """
    clip_width, teacher_width = config.clip_width, config.teacher.width
    if meta:
        skipped(CONFIG_ONLY)
        _shapes(clip_width, teacher_width, passed, skipped)
        return
    if here(config.clip):
        clip = FrozenClip(config.clip, exp_clip_rule(config.paper_preprocess))
        clip_width = checked_width(config.clip, clip.width, clip_width, "clip_width")
        passed(f"{config.clip} loads: joint space of {clip_width}")
    else:
        skipped(f"{config.clip}: not on this machine, so not loaded")
    if here(config.teacher.model):
        teacher_width = check_teacher_width(config.teacher)
        passed(f"{config.teacher.model}: features of {teacher_width}")
    else:
        skipped(f"{config.teacher.model}: not on this machine, so not loaded")
    _shapes(clip_width, teacher_width, passed, skipped)
    missing = [root for root in config.data if not root.exists()]
    if missing:
        skipped(f"{missing[0]}: no such folder here, so its faces were not counted")
        return
    faces = UnlabelledFaces(config.data, config.split, config.max_faces)
    check_batch(config, len(faces))
    if config.teacher.kind == "text":
        faces.check_captions()
    cached = len(faces) * (4 * clip_width + 2 * teacher_width) / 2**20
    steps = config.epochs * (len(faces) // config.batch_size)
    passed(f"data: {len(faces):,} faces, {steps:,} steps, {cached:,.0f} MiB of cached features")


def _shapes(clip_width: int, teacher_width: int, passed: Say, skipped: Say) -> None:
    if not clip_width or not teacher_width:
        skipped("shapes: clip_width and teacher.width are not both given")
        return
    with torch.device("meta"):
        head = ExpClipHead(clip_width, teacher_width)
        made = head(torch.empty(2, clip_width))
    count = head.mlp.weight.numel()
    passed(f"shapes: head {clip_width} -> {made.shape[-1]}, {count / 1e6:.2f} M weights")


def check_teacher_width(teacher: TeacherConfig) -> int:
    """The width of a teacher's feature, which is what the config says if it says one.

    Raises:
        UserError: another one, or not the kind of model the teacher needs.
    """
    return checked_width(teacher.model, teacher_width_of(teacher), teacher.width, "teacher.width")


def teacher_width_of(teacher: TeacherConfig) -> int:
    """Width of a teacher's feature, from its configuration alone.

    Raises:
        UserError: not the kind of model the teacher needs.
    """
    if teacher.kind == "artifact":
        reference = read_artifact(Path(teacher.model)).bases.llm
        return _settings(reference).get_text_config().hidden_size
    config = _settings(teacher.model)
    if teacher.kind == "blip2" and config.model_type != "blip-2":
        raise UserError(
            f"{teacher.model}: a {config.model_type} model, not BLIP-2", "correct teacher.kind"
        )
    return config.get_text_config().hidden_size


def _settings(reference: str) -> Any:
    """A model's configuration without its weights."""
    folder = resolve(reference)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{reference}: not a model this transformers version can load ({brief(error)})",
            "give a Hugging Face model folder or id",
        ) from error
