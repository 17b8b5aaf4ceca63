"""From scored rows to the entries of ``results.json``: values, intervals, baselines beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eval import metrics
from eval.metrics import Array
from eval.table import GROUP
from eval.tasks import metrics_for

Key = tuple[str, str, str, str]  # protocol, task, name, metric


@dataclass(frozen=True)
class Estimate:
    """One figure: value, the resampled values behind its interval, and what it was measured on."""

    value: float
    draws: Array
    faces: int
    invalid_rate: float
    rows: int


def class_metric(name: str, choices: tuple[str, ...]) -> Any:
    """The function on confusion counts behind a metric's name."""
    if name == "f1":
        return metrics.f1_positive(0)  # the positive answer stands first
    functions = {
        "uar": metrics.uar,
        "war": metrics.war,
        "accuracy": metrics.war,
        "f1_macro": metrics.f1_macro,
        "balanced_accuracy": metrics.balanced_accuracy,
    }
    return functions[name]


def estimate(scored: pd.DataFrame, seed: int = 0) -> dict[Key, Estimate]:
    """Every metric of one scorer's rows.

    Args:
        scored: rows of a single scorer.
        seed: of the bootstrap; subjects are sorted first, so the order of rows does not matter.

    Returns:
        Figures by (protocol, task, name, metric); name ``all`` is the mean over names.
    """
    codes, subjects = pd.factorize(scored["subject"], sort=True)
    scored = scored.assign(_subject=codes)
    figures: dict[Key, Estimate] = {}
    for key, rows in scored.groupby(GROUP, sort=True):
        for (name, metric), figure in _name_figures(rows, len(subjects), seed).items():
            figures[(key[0], key[1], name, metric)] = figure
    for key, rows in scored.groupby(["protocol", "task"], sort=True):
        figures |= _means(figures, key[0], key[1], rows)
    return figures


def _name_figures(rows: pd.DataFrame, subjects: int, seed: int) -> dict[tuple[str, str], Estimate]:
    task, name, kind = rows[["task", "name", "kind"]].iloc[0]
    if kind == "numeric":
        return {
            (name, metric): _numeric(rows, column, subjects, seed)
            for metric, column in (("mae", "prediction"), ("mae_argmax", "argmax"))
        }
    choices = rows["choices"].iloc[0]
    truth, guess = rows["truth"].to_numpy(), rows["prediction"].to_numpy()
    counts = metrics.confusion_by_subject(
        truth, guess, len(choices), rows["_subject"].to_numpy(), subjects
    )
    total, draws = counts.sum(0), metrics.resample(counts, seed)
    extra = _faces(rows)
    figures = {}
    for metric in metrics_for(task, kind):
        function = class_metric(metric, choices)
        figures[(name, metric)] = Estimate(float(function(total)), function(draws), *extra)
    if kind == "classes":
        figures |= _recalls(choices, total, draws, extra[1])
    return figures


def _numeric(rows: pd.DataFrame, column: str, subjects: int, seed: int) -> Estimate:
    sums = metrics.errors_by_subject(
        rows["truth"].to_numpy(), rows[column].to_numpy(), rows["_subject"].to_numpy(), subjects
    )
    draws = metrics.mae(metrics.resample(sums, seed))
    return Estimate(float(metrics.mae(sums.sum(0))), draws, *_faces(rows))


def _recalls(
    choices: tuple[str, ...], total: Array, draws: Array, invalid: float
) -> dict[tuple[str, str], Estimate]:
    """Recall of each class, with the number of faces of that class."""
    value, spread, support = metrics.recalls(total), metrics.recalls(draws), total.sum(-1)
    return {
        (choice, "recall"): Estimate(
            float(value[k]), spread[:, k], int(support[k]), invalid, int(support[k])
        )
        for k, choice in enumerate(choices)
    }


def _faces(rows: pd.DataFrame) -> tuple[int, float, int]:
    """Faces, share of unreadable answers, and rows with a known truth."""
    known = rows[rows["truth"].notna()]
    invalid = float(1 - known["valid"].mean()) if len(known) else math.nan
    return known["id"].nunique(), invalid, len(known)


def _means(
    figures: dict[Key, Estimate], protocol: str, task: str, rows: pd.DataFrame
) -> dict[Key, Estimate]:
    """Name ``all``: the mean over the names where the figure is defined."""
    kinds = dict(zip(rows["name"], rows["kind"], strict=True))
    names = sorted(name for name in kinds if name != "all")
    wanted = dict.fromkeys(m for name in names for m in metrics_for(task, kinds[name]))
    means: dict[Key, Estimate] = {}
    for metric in wanted:
        parts = [figures.get((protocol, task, name, metric)) for name in names]
        label = "f1_macro" if metric == "f1" else metric
        means[(protocol, task, "all", label)] = _mean([part for part in parts if part], rows)
    return means


def _mean(parts: list[Estimate], rows: pd.DataFrame) -> Estimate:
    """Mean of the defined figures, of each resample alike; NaN where none is defined."""
    values = metrics.nanmean(np.array([part.value for part in parts]))
    draws = metrics.nanmean(np.stack([part.draws for part in parts], axis=-1))
    return Estimate(float(values), draws, *_faces(rows))


def entries(
    model: dict[Key, Estimate],
    baselines: dict[str, dict[Key, Estimate]],
    split: str,
    scorer: str,
) -> list[dict[str, Any]]:
    """The ``results`` list: one entry per figure, the baselines' values on the same rows inside.

    A figure that cannot be measured (no face of one class) is ``None``, never zero.
    """
    listed = []
    for key in sorted(model, key=_order):
        figure = model[key]
        low, high = metrics.interval(figure.draws)
        beside = {
            name: number(each[key].value)
            for name, each in baselines.items()
            if key in each and each[key].rows == figure.rows  # the same rows or no comparison
        }
        listed.append(
            {
                "task": key[1],
                "name": key[2],
                "protocol": key[0],
                "split": split,
                "scorer": scorer,
                "metric": key[3],
                "value": number(figure.value),
                "ci95": [number(low), number(high)],
                "n": figure.faces,
                "invalid_rate": number(figure.invalid_rate),
                "baselines": beside,
            }
        )
    return listed


def _order(key: Key) -> tuple[str, str, bool, str, str]:
    return key[1], key[0], key[2] != "all", key[2], key[3]


def number(value: float) -> float | None:
    """A json number, or None for NaN."""
    return None if math.isnan(value) else float(value)
