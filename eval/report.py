"""The report: one self-contained HTML page, and the same headline table on the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eval import plots
from eval.cards import cards
from eval.run import Measured
from eval.tasks import LOWER_IS_BETTER, UNITS, headline, in_order

_NAMES = {
    "uar": "UAR",
    "war": "WAR",
    "f1": "F1",
    "f1_macro": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "mae": "MAE",
    "mae_argmax": "MAE of the likeliest value",
    "recall": "recall",
}


def headlines(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry that stands for each task, protocol and scorer, in the order of reports."""
    chosen = []
    for task in in_order([entry["task"] for entry in results]):
        whole = [e for e in results if e["task"] == task and e["name"] == "all"]
        metrics = {entry["metric"] for entry in whole}
        kind = "numeric" if "mae" in metrics else "classes" if "uar" in metrics else "binary"
        metric = headline(task, kind)
        chosen += [entry for entry in whole if entry["metric"] == metric]
    return chosen


def shown(value: float | None, metric: str) -> str:
    """A figure as printed: three digits for shares, two for years and degrees."""
    if value is None:
        return "\u2013"
    return f"{value:.2f}" if metric in LOWER_IS_BETTER else f"{value:.3f}"


def metric_name(entry: dict[str, Any]) -> str:
    """Metric with its unit."""
    name = _NAMES.get(entry["metric"], entry["metric"])
    unit = UNITS.get(entry["task"]) if entry["metric"] in LOWER_IS_BETTER else None
    return f"{name} ({unit})" if unit else name


def interval(entry: dict[str, Any]) -> str:
    """The 95 % interval as text."""
    return _range(entry, " to ")


def _range(entry: dict[str, Any], between: str) -> str:
    low, high = (shown(end, entry["metric"]) for end in entry["ci95"])
    return low if entry["ci95"][0] is None else f"{low}{between}{high}"


def verdict(entry: dict[str, Any], baseline: str = "linear_probe") -> str:
    """``better``, ``worse`` or ``level``: where the baseline lies against the interval."""
    beside, (low, high) = entry["baselines"].get(baseline), entry["ci95"]
    if beside is None or low is None or low <= beside <= high:
        return "level"
    return "better" if (beside < low) != (entry["metric"] in LOWER_IS_BETTER) else "worse"


def print_results(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the headline table with Rich, one for each scorer.

    Args:
        results: what :func:`eval.run.evaluate` returned, or a loaded ``results.json``.
    """
    chosen = headlines(results["results"])
    scorers = list(dict.fromkeys(entry["scorer"] for entry in chosen))
    for scorer in scorers:
        rows = [entry for entry in chosen if entry["scorer"] == scorer]
        title = scorer if len(scorers) > 1 else None
        (console or Console()).print(_console_table(rows, title))


def _console_table(chosen: list[dict[str, Any]], title: str | None) -> Table:
    table = Table(
        title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1, 0, 0)
    )
    for heading in ("task", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("model", "95 %", "majority", "probe", "CLIP", "faces"):
        table.add_column(heading, justify="right", no_wrap=True)
    colour = {"better": "green", "worse": "yellow", "level": "bold"}
    for entry in chosen:
        table.add_row(
            _short(entry["task"]),
            _narrow(metric_name(entry)),
            f"[{colour[verdict(entry)]}]{shown(entry['value'], entry['metric'])}[/]",
            _range(entry, "\u2013"),
            *(shown(entry["baselines"].get(name), entry["metric"]) for name in plots.LABELS),
            f"{entry['n']:,}",
        )
    return table


def _narrow(metric: str) -> str:
    return metric.replace("balanced accuracy", "bal. acc.").replace("degrees", "deg")


def _short(task: str) -> str:
    """A task's name for a narrow column."""
    return task.removesuffix("_attribute").replace("_attribute_yes_no", "_y/n").replace("_", " ")


def plain(name: str) -> str:
    """A task, metric or attribute as a reader writes it."""
    for part, words in (("zero_shot_", "zero-shot "), ("_yes_no", " (yes/no)"), ("_", " ")):
        name = name.replace(part, words)
    return name


def write_report(found: dict[str, Any], measured: Measured, path: Path, seed: int) -> None:
    """Write the page: tables, figures and pictures inside, no link to anything outside."""
    environment = Environment(
        loader=PackageLoader("eval", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.globals |= {
        "shown": shown,
        "metric_name": metric_name,
        "interval": interval,
        "verdict": verdict,
        "labels": plots.LABELS,
        "plain": plain,
    }
    page = environment.get_template("report.html.j2").render(
        found=found,
        about={"model": "", "chain": [], "data": "", "bases": {}, "notes": [], **measured.about},
        headlines=headlines(found["results"]),
        sections=sections(measured),
        cards=cards(measured, seed),
        detail=detail(found["results"]),
        several_protocols=len({e["protocol"] for e in found["results"]}) > 1,
    )
    path.write_text(page, encoding="utf-8")


def detail(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every entry, in the order of reports."""
    order = {task: at for at, task in enumerate(in_order([e["task"] for e in results]))}
    return sorted(results, key=lambda entry: order[entry["task"]])


def sections(measured: Measured) -> list[dict[str, Any]]:
    """One figure per task, protocol and scorer of the model."""
    made = []
    scorers = list(dict.fromkeys(entry["scorer"] for entry in measured.results))
    rows = measured.predictions[measured.predictions["scorer"].isin(scorers)]
    groups = {key: part for key, part in rows.groupby(["task", "protocol", "scorer"])}  # noqa: C416
    order = in_order([key[0] for key in groups])
    for key in sorted(groups, key=lambda key: (order.index(key[0]), *key[1:])):
        part = groups[key]
        title = [plain(key[0])]
        title += [key[1]] * (rows["protocol"].nunique() > 1) + [key[2]] * (len(scorers) > 1)
        wide = part["kind"].iloc[0] == "numeric" and part["name"].nunique() > 1
        svg = Markup(_figure(measured, part, key))
        made.append({"title": ", ".join(title), "svg": svg, "wide": wide})
    return made


def _figure(measured: Measured, rows: pd.DataFrame, key: tuple[str, str, str]) -> str:
    task, protocol, scorer = key
    name, kind = "-".join(key), rows["kind"].iloc[0]
    if kind == "numeric":
        return plots.scatters(rows, UNITS.get(task, ""), name)
    if kind == "classes":
        return plots.confusion(rows, name)
    metric = "f1" if task == "action_unit" else "balanced_accuracy"
    entries = [
        entry
        for entry in measured.results
        if (entry["task"], entry["protocol"], entry["scorer"]) == (task, protocol, scorer)
        and entry["metric"] == metric
        and entry["name"] != "all"
    ]
    return plots.bars(entries, _NAMES[metric], name)
