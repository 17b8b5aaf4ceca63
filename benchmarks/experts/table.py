"""Predictions to the table: UAR, WAR and recalls on every set, seeds averaged on equal resamples.

A system's answers are ``predictions/<system>/<seed>/<set>.parquet``: id, subject, truth and
log-probabilities in the order of the classes. Any other program may add rows of that form, so a
model of another kind is measured on the same faces with the same resamples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from domains import classes_of

from eval import metrics
from face_mllm.errors import UserError

MODEL, EXPERT, FUSED = "likelihood", "expert", "late_fusion"  # scorers of an evaluation
RESAMPLING = 0  # one seed: every system sees the same resampled people


@dataclass(frozen=True)
class Row:
    """A system on a set; draws are means over seeds of one resample.

    Args:
        by_seed: UAR of each seed.
    """

    system: str
    test: str
    n: int
    uar: float
    war: float
    recalls: list[float]
    uar_draws: np.ndarray
    war_draws: np.ndarray
    by_seed: list[float]


def write_answers(root: Path, system: str, seed: int, test: str, table: pd.DataFrame) -> Path:
    """Keep one system's answers on one set."""
    path = root / "predictions" / system / str(seed) / f"{test}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)
    return path


def from_eval(path: Path, classes: tuple[str, ...], scorer: str = MODEL) -> pd.DataFrame:
    """Answers of ``face-mllm eval`` (its predictions.parquet) in the shape of this table.

    Args:
        path: of the predictions.
        classes: in the order of the table.
        scorer: whose answers: ``likelihood`` (the model), ``late_fusion`` or ``expert``.

    Raises:
        UserError: the evaluation has no likelihoods of that scorer, or faces of other classes.
    """
    rows = pd.read_parquet(path)
    rows = rows[(rows["task"] == "expression") & (rows["kind"] == "classes")]
    rows = rows[[len(logs) > 0 for logs in rows["log_likelihoods"]]]  # free text has none
    found = sorted(rows["scorer"].unique())
    if scorer not in found:
        raise UserError(
            f"{path}: no expressions scored by {scorer}", f"choose from {', '.join(found)}"
        )
    rows = rows[rows["scorer"] == scorer]
    logs = [
        np.array([dict(zip(choices, values, strict=True)).get(name, -np.inf) for name in classes])
        for choices, values in zip(rows["choices"], rows["log_likelihoods"], strict=True)
    ]
    words = [choices[int(at)] for choices, at in zip(rows["choices"], rows["truth"], strict=True)]
    foreign = sorted(set(words) - set(classes))
    if foreign:
        raise UserError(
            f"{path}: faces of {', '.join(foreign)}, which is no class of this table",
            "evaluate on the faces of this benchmark",
        )
    truth = [classes.index(word) for word in words]
    return pd.DataFrame(
        {"id": rows["id"], "subject": rows["subject"], "truth": truth, "log_likelihoods": logs}
    )


def rows_of(root: Path, common: bool = False) -> list[Row]:
    """Every system on every set, best UAR first within a set.

    Args:
        root: folder of the benchmark.
        common: keep of each set only the faces that all its systems answered.

    Raises:
        UserError: two systems that did not answer the same faces, or have none in common.
    """
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for path in sorted((root / "predictions").rglob("*.parquet")):
        system = str(path.parent.parent.relative_to(root / "predictions"))
        table = pd.read_parquet(path).sort_values("id", ignore_index=True)
        found.setdefault((path.stem, system), []).append(table)
    if common:
        found = _common(found)
    first: dict[str, pd.Series] = {}
    for (test, system), tables in found.items():
        for table in tables:
            if not first.setdefault(test, table["id"]).equals(table["id"]):
                raise UserError(
                    f"{system} answered other faces of {test}", "run it again, or use --common"
                )
    count = len(classes_of(root))
    rows = [_row(system, test, tables, count) for (test, system), tables in found.items()]
    return sorted(rows, key=lambda row: (row.test, -row.uar))


def _common(
    found: dict[tuple[str, str], list[pd.DataFrame]],
) -> dict[tuple[str, str], list[pd.DataFrame]]:
    shared: dict[str, set[str]] = {}
    for (test, _), tables in found.items():
        for table in tables:
            shared[test] = shared.get(test, set(table["id"])) & set(table["id"])
    for test, ids in shared.items():
        if not ids:
            raise UserError(f"{test}: no face that all systems answered", "run them again")
    return {
        (test, system): [
            table[table["id"].isin(shared[test])].reset_index(drop=True) for table in tables
        ]
        for (test, system), tables in found.items()
    }


def _row(system: str, test: str, tables: list[pd.DataFrame], classes: int) -> Row:
    counts = [_counts(table, classes) for table in tables]
    sums = [each.sum(0) for each in counts]
    draws = [metrics.resample(each, RESAMPLING) for each in counts]
    return Row(
        system, test, len(tables[0]),
        float(np.mean([metrics.uar(each) for each in sums])),
        float(np.mean([metrics.war(each) for each in sums])),
        np.mean([metrics.recalls(each) for each in sums], axis=0).tolist(),
        np.mean([metrics.uar(each) for each in draws], axis=0),
        np.mean([metrics.war(each) for each in draws], axis=0),
        [float(metrics.uar(each)) for each in sums],
    )  # fmt: skip


def _counts(table: pd.DataFrame, classes: int) -> np.ndarray:
    guess = np.stack(table["log_likelihoods"].to_numpy()).argmax(-1).astype(np.float64)
    people, subject = np.unique(table["subject"].astype(str), return_inverse=True)
    truth = table["truth"].to_numpy(np.float64)
    return metrics.confusion_by_subject(truth, guess, classes, subject, len(people))


def markdown(rows: list[Row], classes: tuple[str, ...], rival: str) -> str:
    """A table for each set; ``rival`` is what the gain in UAR is measured against."""
    parts = []
    for test in sorted({row.test for row in rows}):
        here = [row for row in rows if row.test == test]
        against = next((row for row in here if row.system == rival), None)
        counts = f"n = {here[0].n}"
        parts.append(
            f"### {test} ({counts})\n\n| system | seeds | UAR | WAR | gain in UAR over {rival} | "
            f"{' | '.join(classes)} |\n|---|---:|---|---|---|{'---:|' * len(classes)}\n"
            + "".join(_line(row, against) for row in here)
        )
    return "\n".join(parts)


def _line(row: Row, against: Row | None) -> str:
    spread = f", {100 * min(row.by_seed):.1f}-{100 * max(row.by_seed):.1f} by seed"
    gain = "-" if against is None or against is row else _figure(*gain_over(row, against), "+")
    recalls = " | ".join("-" if np.isnan(r) else f"{100 * r:.0f}" for r in row.recalls)
    return (
        f"| {row.system} | {len(row.by_seed)} | {_figure(row.uar, row.uar_draws)}"
        f"{spread if len(row.by_seed) > 1 else ''} | {_figure(row.war, row.war_draws)} | "
        f"{gain} | {recalls} |\n"
    )


def gain_over(row: Row, against: Row) -> tuple[float, np.ndarray]:
    """Gain in UAR and its resamples: the same people in both."""
    return row.uar - against.uar, row.uar_draws - against.uar_draws


def _figure(value: float, draws: np.ndarray, sign: str = "") -> str:
    low, high = metrics.interval(draws)
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def json_lines(rows: list[Row], rival: str) -> list[str]:
    """A line a system and set, as every bench prints them."""
    lines = []
    for row in rows:
        against = next((r for r in rows if (r.system, r.test) == (rival, row.test)), None)
        if against is None or against is row:
            continue
        low, high = metrics.interval(gain_over(row, against)[1])
        line = {"bench": "experts", "case": f"{row.test}/{row.system}", "ours": round(row.uar, 4)}
        line |= {"rival": round(against.uar, 4), "rival_name": rival, "unit": "uar"}
        line |= {"ratio": round(row.uar / against.uar, 4) if against.uar else None, "n": row.n}
        lines.append(json.dumps(line | {"gain_ci95": [round(low, 4), round(high, 4)]}))
    return lines
