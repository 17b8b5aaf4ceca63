"""Exp-CLIP's heads of the table: the paper's, further trained ones, and the untrained control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import recall_score
from torch.nn import functional

from face_mllm.experts.exp_clip.config import ExpClipConfig, TeacherConfig
from face_mllm.experts.exp_clip.faces import UnlabelledFaces, teacher_features
from face_mllm.experts.exp_clip.fit import fit
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.teachers import load_teacher
from face_mllm.experts.exp_clip.zero_shot import prompt_features, zero_shot
from face_mllm.experts.mask_fer.faces import ExpressionFaces
from face_mllm.hardware import for_precision

if TYPE_CHECKING:
    from systems import Bench

PROMPTS = (1, 2, 3, 4, 5)
# rate and steps a head is chosen among on val; the first are the paper's
RECIPES = ((1e-3, 475), (1e-2, 475), (0.05, 475), (0.2, 475), (0.05, 1900))

_HEADS: dict[tuple[int, float, int], ExpClipHead] = {}
_TARGETS: list[torch.Tensor] = []


def untrained(bench: Bench, seed: int) -> ExpClipHead:
    return ExpClipHead(bench.clip.width, teacher_target(bench).shape[1], seed)


def exp_clip_head(bench: Bench, seed: int) -> ExpClipHead:
    """The head of a seed, trained once for all prompt types on faces without labels."""
    return _head(bench, exp_clip_config(bench, seed))


def converged_head(bench: Bench, seed: int) -> ExpClipHead:
    """The same at fifty times the paper's rate: its head stops far from converged."""
    return _head(bench, exp_clip_config(bench, seed).model_copy(update={"learning_rate": 0.05}))


def mean_recall(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(recall_score(truth, guess, labels=np.unique(truth), average="macro"))


def chosen_head(bench: Bench, seed: int) -> ExpClipHead:
    """Rate and steps by the mean UAR of the five prompt types on val: the labels' only part."""
    val, answers = bench.features("val"), bench.sets["val"].targets.numpy()
    texts = [prompt_features(bench.clip, bench.classes, kind) for kind in PROMPTS]
    scale, tried = bench.clip.logit_scale, []
    for rate, steps in RECIPES:
        config = exp_clip_config(bench, seed, steps).model_copy(update={"learning_rate": rate})
        head = _head(bench, config)
        guesses = [zero_shot(head, val, words, scale).argmax(-1).numpy() for words in texts]
        tried.append((np.mean([mean_recall(guess, answers) for guess in guesses]), head))
    best = max(range(len(tried)), key=lambda place: tried[place][0])
    print(f"seed {seed}: rate and steps {RECIPES[best]} by val", flush=True)
    return tried[best][1]


def _head(bench: Bench, config: ExpClipConfig) -> ExpClipHead:
    key = (config.seed, config.learning_rate, config.epochs)
    if key not in _HEADS:
        fitted = fit(bench.features("train"), teacher_target(bench), bench.clip.logit_scale, config)
        val, truth = bench.features("val"), bench.sets["val"].targets
        with torch.no_grad():
            shares = [expression_share(given, truth) for given in (val, fitted.head(val))]
        print(
            f"head, rate {config.learning_rate}, {config.epochs} epochs: {fitted.curve[0]} -> "
            f"{fitted.curve[-1]}; expression {shares[0]:.3f} -> {shares[1]:.3f} of the variance",
            flush=True,
        )
        _HEADS[key] = fitted.head
    return _HEADS[key]


def expression_share(features: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the variance of unit-length features [N, D] that lies between the classes [N]."""
    unit = functional.normalize(features, dim=-1)
    apart = unit - unit.mean(0)
    means = {k: apart[truth == k].mean(0) for k in truth.unique().tolist()}
    between = torch.stack([means[k] for k in truth.tolist()])
    return float(between.square().sum() / apart.square().sum())


def teacher_target(bench: Bench) -> torch.Tensor:
    if not bench.settings.get("teacher"):  # a width for the control
        return torch.empty(0, 4 * bench.clip.width)
    if not _TARGETS:
        teacher = load_teacher(exp_clip_config(bench, 0).teacher, for_precision("auto"))
        faces = _Unlabelled(bench.sets["train"])
        _TARGETS.append(teacher_features(teacher, faces, bench.cache, _quiet))
    return _TARGETS[0]


class _Unlabelled(UnlabelledFaces):
    """Faces of a set as Exp-CLIP reads them."""

    def __init__(self, faces: ExpressionFaces) -> None:
        self.faces, self.count = faces, len(faces)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.faces)


def exp_clip_config(bench: Bench, seed: int, steps: int = 475) -> ExpClipConfig:
    """The paper's settings and its number of steps, whatever the number of faces."""
    train = len(bench.sets["train"])
    batch = min(512, train)
    teacher = {"model": str(bench.settings["teacher"])}
    teacher["kind"] = "artifact" if Path(teacher["model"]).is_dir() else "blip2"
    if "instruction" in bench.settings:
        teacher["instruction"] = bench.settings["instruction"]
    return ExpClipConfig(
        data=(bench.root,),
        out=bench.root,
        clip=bench.clip_name,
        teacher=TeacherConfig.model_validate(teacher),
        seed=seed,
        epochs=-(-steps // (train // batch)),
        batch_size=batch,
    )


def _quiet(_done: int, _total: int, _text: str) -> None:
    """No bar: the command prints a line a head."""
