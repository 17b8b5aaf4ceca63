"""Honest baselines on the same rows and through the same metrics as the model.

``majority`` (mean for numbers) knows only the training labels; ``linear_probe`` is a linear model
on the frozen vision features the MLLM itself sees; ``clip_zero_shot`` compares the face with
prompts and has seen no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from data_pipeline.captions import ADJECTIVES
from data_pipeline.labels.attributes import attribute
from eval import metrics
from eval.results import class_metric
from eval.table import Faces, score_rows, value_rows
from eval.tasks import metrics_for, rank
from face_mllm import distributed
from face_mllm.progress import Progress

Features = NDArray[np.float64]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse strength; features are standardised
ALPHA_GRID = (1e4, 1e3, 1e2, 1e1, 1e0)
_BATCH = 64
_NEWTON_WIDTH = 3000  # classes x features up to which an exact Newton step is the quicker one
_CLIP_ATTRIBUTES = ("attribute", "zero_shot_attribute", "zero_shot_attribute_yes_no")


class Clip(Protocol):
    """A CLIP-style model; :class:`face_mllm.face_clip.zero_shot.ZeroShot` is one."""

    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Embeddings [N, D], so a face is encoded once for all questions."""

    def probabilities(
        self, image: torch.Tensor, prompts: Sequence[Sequence[str]]
    ) -> NDArray[np.floating]:
        """Probabilities [N, len(prompts)]; each inner list is one class's prompt ensemble."""


@dataclass(frozen=True)
class FaceSet:
    """Labelled faces and their frozen features.

    Args:
        table: rows of :func:`eval.table.question_table`.
        features: [faces, D].
        index: face id -> row of ``features``.
    """

    table: pd.DataFrame
    features: Features
    index: dict[str, int]

    def arrays(
        self, task: str, name: str, classes: int | None = None
    ) -> tuple[Features, NDArray[np.float64]]:
        """Features and truth of the faces where this name is known, as one of the classes."""
        rows = self.table[(self.table["task"] == task) & (self.table["name"] == name)]
        if classes is not None:  # eight expressions train a probe of seven, too
            rows = rows[~(rows["truth"] >= classes)]
        return self.of(rows), rows["truth"].to_numpy()

    def of(self, rows: pd.DataFrame) -> Features:
        """Features of the faces of these rows."""
        return self.features[[self.index[face] for face in rows["id"]]]


def extract(
    features: Callable[[list[Image.Image]], Any], faces: Faces, progress: Progress, what: str
) -> tuple[Features, dict[str, int]]:
    """Frozen features of every face, images decoded a batch at a time.

    Returns:
        [faces, D] and face id -> row.
    """

    def batch(number: int) -> tuple[list[str], Features]:
        start = number * _BATCH
        end = min(start + _BATCH, len(faces))
        records = [faces[at] for at in range(start, end)]
        found = np.asarray(features([r.open_image() for r in records]), dtype=np.float64)
        progress(end, len(faces), f"features of {what} faces")
        return [record.id for record in records], found

    # whole batches are shared out, so their makeup is the same on any number of processes
    parts = distributed.spread(math.ceil(len(faces) / _BATCH), batch)
    index = {face: row for row, face in enumerate(face for ids, _ in parts for face in ids)}
    return np.concatenate([found for _, found in parts]), index


# --- majority


def priors(train: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(task, name) -> the training split's most frequent class, or mean number."""
    found = {}
    for (task, name), rows in train.groupby(["task", "name"]):
        truth = rows["truth"].dropna()
        numeric = rows["kind"].iloc[0] == "numeric"
        found[(task, name)] = float(truth.mean() if numeric else truth.mode().iloc[0])
    return found


def majority(test: pd.DataFrame, known: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Answer every question with the training prior; names without training labels are left out."""
    keys = list(zip(test["task"], test["name"], strict=True))
    rows = test[[key in known for key in keys]]
    guess = np.array([known[key] for key in keys if key in known], dtype=np.float64)
    return value_rows(rows, "majority", guess)


# --- linear probe


def linear_probe(
    test: FaceSet, train: FaceSet, select: FaceSet, progress: Progress
) -> pd.DataFrame:
    """One linear model per name: balanced logistic regression, or ridge for numbers.

    Classes are weighted alike because UAR, balanced accuracy and F1 do so. The strength of
    regularisation is chosen by the task's own metric on ``select`` and nothing else.

    Args:
        test: measured faces.
        train: faces the probe is fitted on.
        select: faces that choose the regularisation, apart from both.

    Returns:
        Scored rows; names without training labels are left out.
    """
    scaler = StandardScaler().fit(train.features)
    test, train, select = (
        FaceSet(each.table, scaler.transform(each.features), each.index)
        for each in (test, train, select)
    )
    groups = list(test.table.groupby(["task", "name", "choices"], sort=True))
    parts = []
    for done, ((task, name, choices), rows) in enumerate(groups, 1):
        classes = None if rows["kind"].iloc[0] == "numeric" else len(choices)
        known, chosen = (each.arrays(task, name, classes) for each in (train, select))
        with threadpool_limits(1):  # many small solves: threads wait for each other, 10x slower
            fitted = _probe(rows, test.of(rows), known, chosen)
        parts += [] if fitted is None else [fitted]
        progress(done, len(groups), "linear probe")
    return pd.concat(parts) if parts else value_rows(test.table[:0], "linear_probe", np.empty(0))


def _probe(
    rows: pd.DataFrame,
    features: Features,
    train: tuple[Features, NDArray[np.float64]],
    select: tuple[Features, NDArray[np.float64]],
) -> pd.DataFrame | None:
    if not len(train[1]):
        return None
    task, kind, choices = rows[["task", "kind", "choices"]].iloc[0]
    if kind == "numeric":
        return value_rows(rows, "linear_probe", _ridge(train, select).predict(features))
    if len(set(train[1])) == 1:  # nothing to tell apart: any classifier is this constant
        return value_rows(rows, "linear_probe", np.full(len(rows), train[1][0]))
    model = _logistic(train, select, metrics_for(task, kind)[0], choices)
    logs = np.full((len(rows), len(choices)), -np.inf)
    logs[:, model.classes_.astype(int)] = model.predict_log_proba(features)
    return score_rows(rows, "linear_probe", list(logs))


def _ridge(
    train: tuple[Features, NDArray[np.float64]], select: tuple[Features, NDArray[np.float64]]
) -> Ridge:
    models = [Ridge(alpha=alpha).fit(*train) for alpha in ALPHA_GRID]
    if not len(select[1]):
        return models[len(models) // 2]
    return min(models, key=lambda model: float(np.abs(model.predict(select[0]) - select[1]).mean()))


def _logistic(
    train: tuple[Features, NDArray[np.float64]],
    select: tuple[Features, NDArray[np.float64]],
    metric: str,
    choices: tuple[str, ...],
) -> LogisticRegression:
    width = train[0].shape[1] * (len(choices) if len(choices) > 2 else 1)
    solver = "newton-cholesky" if width <= _NEWTON_WIDTH else "lbfgs"
    models = [
        LogisticRegression(C=c, class_weight="balanced", solver=solver, max_iter=500).fit(*train)
        for c in C_GRID
    ]
    scores = [_score(model, select, metric, choices) for model in models]
    if np.isnan(scores).all():  # nothing to choose by: the middle of the grid
        return models[len(models) // 2]
    return models[int(np.nanargmax(scores))]


def _score(
    model: LogisticRegression,
    select: tuple[Features, NDArray[np.float64]],
    metric: str,
    choices: tuple[str, ...],
) -> float:
    if not len(select[1]):
        return float("nan")
    one = np.zeros(len(select[1]), dtype=np.int64)
    guess = model.predict(select[0])
    counts = metrics.confusion_by_subject(select[1], guess, len(choices), one, 1)[0]
    return float(class_metric(metric, choices)(counts))


def split_subjects(whole: FaceSet, seed: int, share: float = 0.2) -> tuple[FaceSet, FaceSet]:
    """Part a training set by subject where there is no validation split apart from the test.

    Returns:
        (the rest, about ``share`` of the subjects, drawn by hash).
    """
    subjects = sorted(whole.table["subject"].unique(), key=lambda name: rank(name, seed))
    held = set(subjects[: max(1, round(share * len(subjects)))])
    chosen = whole.table["subject"].isin(held)
    return (
        FaceSet(whole.table[~chosen], whole.features, whole.index),
        FaceSet(whole.table[chosen], whole.features, whole.index),
    )


# --- CLIP zero-shot


def prompts(task: str, name: str, choices: tuple[str, ...]) -> list[list[str]]:
    """Prompt ensembles per choice, in the order of the choices, worded as captions are."""
    if task == "expression":
        return [
            [f"a face, a {ADJECTIVES[choice]} expression", f"a face, {choice}"]
            for choice in choices
        ]
    registered = attribute(name)
    return [[registered.present], [registered.absent]]


def clip_zero_shot(
    clip: Clip, faces: Faces, test: pd.DataFrame, progress: Progress
) -> pd.DataFrame:
    """Compare every face with the prompts of expression and of the yes/no attributes.

    Returns:
        Scored rows of those tasks.
    """
    fits = (test["task"] == "expression") | (
        test["task"].isin(_CLIP_ATTRIBUTES) & (test["kind"] == "binary")
    )
    rows = test[fits].reset_index(drop=True)
    groups = rows.groupby(["task", "name", "choices"]).indices
    likelihoods: list[NDArray[np.float64]] = [np.empty(0)] * len(rows)
    embedded, index = extract(clip.image_embeddings, faces, progress, "CLIP zero-shot")
    for (task, name, choices), places in groups.items():
        asked = prompts(task, name, choices)
        at = [index[face] for face in rows["id"].iloc[places]]
        chosen = torch.from_numpy(embedded[at]).float()
        found = np.asarray(clip.probabilities(chosen, asked), dtype=np.float64)
        for place, logs in zip(places, np.log(np.clip(found, 1e-30, None)), strict=True):
            likelihoods[place] = logs
    return score_rows(rows, "clip_zero_shot", likelihoods)
