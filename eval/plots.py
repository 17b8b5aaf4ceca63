"""Figures of the report as inline SVG that takes its text colour from the page, light or dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from eval.metrics import confusion_by_subject

INK = "#010203"  # replaced by the page's text colour
MODEL, PROBE, MAJORITY, CLIP = "#3b82f6", "#f59e0b", "#94a3b8", "#10b981"
COLOURS = {"linear_probe": PROBE, "majority": MAJORITY, "clip_zero_shot": CLIP}
LABELS = {
    "majority": "majority / mean",
    "linear_probe": "linear probe",
    "clip_zero_shot": "CLIP zero-shot",
}
_MARKS = {"linear_probe": "D", "majority": "|", "clip_zero_shot": "^"}
_MANY = 1500  # points beyond which a scatter is drawn as pixels
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
_BLUES = LinearSegmentedColormap.from_list("blues", [(0.23, 0.51, 0.96, 0), (0.23, 0.51, 0.96, 1)])


def to_svg(figure: Figure, name: str) -> str:
    """Serialise a figure; ``name`` keeps ids of several figures on one page apart."""
    out = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
        )
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def confusion(rows: pd.DataFrame, name: str) -> str:
    """Confusion matrix: counts, shaded by the share of the true class."""
    choices = rows["choices"].iloc[0]
    one = np.zeros(len(rows), dtype=np.int64)
    truth, guess = rows["truth"].to_numpy(), rows["prediction"].to_numpy()
    counts = confusion_by_subject(truth, guess, len(choices), one, 1)[0]
    labels = [*choices, "unreadable"] if counts[:, -1].any() else list(choices)
    counts = counts[:, : len(labels)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(0.55 * len(labels) + 1.4, 0.42 * len(choices) + 0.9))
        axes = figure.subplots()
        axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, f"{count:.0f}" if count else "\u00b7", ha="center", va="center")
        axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
        axes.set_yticks(range(len(choices)), choices)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return to_svg(figure, name)


def bars(entries: Sequence[dict[str, Any]], metric: str, name: str) -> str:
    """One bar per name with its interval, baselines as marks, best first."""
    shown = sorted(
        (e for e in entries if e["value"] is not None), key=lambda e: (e["value"], e["name"])
    )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.24 * len(shown) + 1.1))
        axes = figure.subplots()
        values = [entry["value"] for entry in shown]
        axes.barh(range(len(shown)), values, color=MODEL, height=0.62, alpha=0.85, label="model")
        _whiskers(axes, shown)
        _marks(axes, shown)
        names = [f"{entry['name'].replace('_', ' ')}  ({entry['n']})" for entry in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set(xlim=(0, 1.02), xlabel=metric.replace("_", " "), ylim=(-0.6, len(shown) - 0.4))
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
    return to_svg(figure, name)


def _whiskers(axes: Axes, shown: Sequence[dict[str, Any]]) -> None:
    for at, entry in enumerate(shown):
        low, high = entry["ci95"]
        if low is not None:
            axes.plot([low, high], [at, at], color=INK, linewidth=0.9, alpha=0.7)


def _marks(axes: Axes, shown: Sequence[dict[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        points = [
            (entry["baselines"][name], at)
            for at, entry in enumerate(shown)
            if entry["baselines"].get(name) is not None
        ]
        if points:
            size = 70 if name == "majority" else 16
            values, places = zip(*points, strict=True)
            axes.scatter(
                values,
                places,
                color=INK if name == "majority" else colour,
                marker=_MARKS[name],
                s=size,
                zorder=3,
                label=LABELS[name],
            )


def scatters(rows: pd.DataFrame, unit: str, name: str) -> str:
    """True against predicted number, one panel per name."""
    names = list(dict.fromkeys(rows["name"]))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.0 * len(names) + 0.4, 3.1), layout="constrained")
        for axes, each in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
            part = rows[rows["name"] == each]
            _scatter(axes, part["truth"].to_numpy(), part["prediction"].to_numpy())
            title = "" if each == "all" else each
            axes.set(title=title, xlabel=f"true ({unit})", ylabel=f"predicted ({unit})")
    return to_svg(figure, name)


def _scatter(axes: Axes, truth: np.ndarray, guess: np.ndarray) -> None:
    axes.scatter(
        truth,
        guess,
        s=9,
        color=MODEL,
        alpha=0.45,
        linewidths=0,
        rasterized=len(truth) > _MANY,
    )
    ends = [min(truth.min(), guess.min()), max(truth.max(), guess.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle=(0, (4, 3)), alpha=0.6)
    axes.set_aspect("equal", adjustable="datalim")
