"""The expert folder: head, what it stands on, its curve and a card; safetensors and json only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.records import whole_folder
from face_mllm.artifact import package_versions
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.fit import Fit
from face_mllm.experts.exp_clip.head import HEAD_FILE, WEIGHT, ExpClipHead, load_head
from face_mllm.experts.exp_clip.prompts import CLASSES
from face_mllm.experts.exp_clip.zero_shot import prompt_features, zero_shot
from face_mllm.experts.pixels import exp_clip_rule
from face_mllm.features import FrozenClip
from face_mllm.hardware import best_device
from face_mllm.train import absolute

INFO_FILE = "expert.json"
METRICS_FILE = "metrics.jsonl"


@dataclass
class ExpClip:
    """A head with the frozen CLIP it belongs to.

    Args:
        head: the projection.
        clip: whose joint space it projects.
        info: what ``expert.json`` says; little for a released checkpoint.
        classes: the expressions it tells apart, in order.
        prompt_type: whose wordings stand for them.
    """

    head: ExpClipHead
    clip: FrozenClip
    info: dict[str, Any]
    classes: tuple[str, ...] = CLASSES[:7]
    prompt_type: int = 5

    @property
    def width(self) -> int:
        """Of its vectors: the teacher's width."""
        return self.head.teacher_width

    @cached_property
    def _texts(self) -> list[torch.Tensor]:
        return prompt_features(self.clip, self.classes, self.prompt_type)

    def vectors(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Projected features [N, width] of upright RGB pictures of one face each."""
        with torch.inference_mode():
            return self.head(self._features(images))

    def log_probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Natural-log probabilities [N, classes], zero-shot."""
        found = zero_shot(self.head, self._features(images), self._texts, self.clip.logit_scale)
        return found.log_softmax(-1)

    def _features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = self.clip.pixels(self.clip.squares(images))
        return self.clip.forward(pixels)["embedding"].float()


def description(
    head: ExpClipHead, clip: str, fingerprint: str, paper_preprocess: bool
) -> dict[str, Any]:
    """What ``expert.json`` says of any head: its CLIP, its pixels, its widths."""
    return {
        "expert": "exp_clip",
        "clip": absolute(clip),
        "clip_fingerprint": fingerprint,
        "paper_preprocess": paper_preprocess,
        "clip_width": head.clip_width,
        "teacher_width": head.teacher_width,
        "versions": package_versions(),
    }


def write_head(folder: Path, head: ExpClipHead, info: dict[str, Any]) -> None:
    """Write weights and ``expert.json``."""
    save_file({WEIGHT: head.mlp.weight.detach().contiguous()}, folder / HEAD_FILE)
    (folder / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n")


def save_expert(fitted: Fit, config: ExpClipConfig, clip: FrozenClip, data: dict[str, Any]) -> None:
    """Write the folder ``config.out`` whole or not at all."""
    settings = json.loads(config.model_dump_json())
    info = description(fitted.head, config.clip, clip.fingerprint, config.paper_preprocess) | {
        "data": data,
        "seconds": round(fitted.seconds, 3),
        "faces_seen": fitted.faces_seen,
        "config": settings,
    }
    with whole_folder(config.out) as folder:
        write_head(folder, fitted.head, info)
        lines = [json.dumps(entry) for entry in fitted.curve]
        (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")
        (folder / "training.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        (folder / "README.md").write_text(card(info, fitted))


def load_exp_clip(
    model: Path | str, clip: str | None = None, paper_preprocess: bool | None = None
) -> ExpClip:
    """Read an expert folder, or a released checkpoint with the CLIP it was trained on.

    Args:
        model: folder of ``exp-clip train``, or a checkpoint file that holds ``mlp.weight``.
        clip: reference of the CLIP; a checkpoint needs it, a folder knows its own and takes no
            other one, though it may have moved.
        paper_preprocess: None takes the folder's setting; true for a released checkpoint.

    Raises:
        UserError: no such folder, no CLIP named, another one than a folder was trained on, or one
            whose joint space has another width.
    """
    head, info = load_head(model), _info(Path(model))
    reference = clip or info.get("clip")
    if reference is None:
        raise UserError(
            f"{model}: a bare checkpoint does not say which CLIP it belongs to",
            "add --clip, such as --clip openai/clip-vit-base-patch32",
        )
    paper = info.get("paper_preprocess", True) if paper_preprocess is None else paper_preprocess
    trained_on = info.get("clip_fingerprint", "")  # wherever that CLIP lies by now
    rule, device = exp_clip_rule(paper), best_device()
    frozen = FrozenClip(reference, rule, device=device, fingerprint=trained_on)
    if frozen.width != head.clip_width:
        raise UserError(
            f"{model}: takes features of {head.clip_width} numbers, {reference} gives "
            f"{frozen.width}",
            "give the CLIP the head was trained on",
        )
    return ExpClip(head, frozen, info | {"clip": reference, "paper_preprocess": paper})


def _info(model: Path) -> dict[str, Any]:
    if not model.is_dir():
        return {}
    path = model / INFO_FILE
    try:
        info = json.loads(path.read_text())
        if not isinstance(info["clip"], str):
            raise TypeError("its clip is no reference")
        return info
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged ({error})", "train the head again") from error


def card(info: dict[str, Any], fitted: Fit) -> str:
    """README.md of the folder."""
    config, first, last = info["config"], fitted.curve[0], fitted.curve[-1]
    teacher = config["teacher"]
    return (
        "---\nlibrary_name: face-mllm\ntags: [face, exp-clip]\n---\n# Exp-CLIP head\n\n"
        f"One bias-free linear layer ({info['clip_width']} -> {info['teacher_width']}) on the "
        f"frozen CLIP `{info['clip']}`, after Zhao et al., arXiv 2405.19100. Teacher: "
        f'{teacher["kind"]} `{teacher["model"]}`, told: "{teacher["instruction"]}"\n\n'
        f"Trained on {info['data']['faces']:,} faces without labels, {config['epochs']} epochs of "
        f"batches of {config['batch_size']}, seed {config['seed']}: loss {first['loss']:.3f} -> "
        f"{last['loss']:.3f}, in-batch top-1 {first['top1']:.1%} -> {last['top1']:.1%}. "
        f"Pixels: {'the paper' if info['paper_preprocess'] else 'CLIP'}'s.\n\n"
        "Measure it with `face-mllm exp-clip eval --model FOLDER --data DATASET --out DIR`; always "
        "read it beside plain CLIP under the same prompt type. Estimates about a face are not "
        "facts about a person: do not use them to identify, hire, police or diagnose anyone.\n"
    )
