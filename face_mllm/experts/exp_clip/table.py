"""The table of an evaluation, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HEAD = (
    "| protocol | prompt type | n | metric | CLIP | up-sampled CLIP | Exp-CLIP | gain over CLIP |\n"
    "|---|---:|---:|---|---|---|---|---|\n"
)


def write_table(found: dict[str, Any], path: Path) -> None:
    """Write UAR and WAR of every prompt type with 95 % intervals."""
    pixels = "the paper's (no mean and std)" if found["paper_preprocess"] else "CLIP's"
    text = (
        "# Exp-CLIP, zero-shot expression\n\n"
        f"`{found['model']}` on the frozen CLIP `{found['clip']}`. Pixels: {pixels}. Classes: "
        f"{', '.join(found['classes'])}. Ensembles: mean of {found['ensemble']}. Left out for "
        f"another or no expression: {sum(found['left_out'])}.\n\n"
        "Every figure in percent with its 95 % interval (bootstrap over subjects). The gain is "
        "paired: the same faces, the same resamples, the identical prompt type.\n\n"
    )
    rows = [row(entry) for entry in found["results"] if entry["metric"] in ("uar", "war")]
    path.write_text(text + HEAD + "".join(rows), encoding="utf-8")


def show(found: dict[str, Any]) -> None:
    """Print UAR under each prompt type beside plain CLIP; the controls' intervals are in files."""
    entries = [entry for entry in found["results"] if entry["metric"] == "uar"]
    title = f"zero-shot expression, {len(found['classes'])} classes, UAR in percent"
    protocols = {entry["protocol"] for entry in entries}
    table = Table(title=title if len(protocols) > 1 else f"{protocols.pop()}: {title}")
    for column in ("prompts", "n", "CLIP", "up-sampled", "Exp-CLIP", "gain"):
        table.add_column(column, justify="right")
    if protocols:
        table.add_column("protocol", overflow="fold")
    for entry in entries:
        protocol, prompts, n, _, clip, upsampled, ours, gain = cells(entry)
        plain = (each.partition(" (")[0] for each in (clip, upsampled))
        table.add_row(prompts, n, *plain, ours, gain, *([protocol] if protocols else []))
    Console(stderr=True).print(table)


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    return f"| {' | '.join(cells(entry))} |\n"


def cells(entry: dict[str, Any]) -> list[str]:
    """Protocol, prompt type, n, metric, CLIP, up-sampled CLIP, Exp-CLIP, gain."""
    beside, spread = entry["baselines"], entry["baselines_ci95"]
    return [
        entry["protocol"],
        str(entry["prompt_type"]),
        str(entry["n"]),
        entry["metric"].upper(),
        *(_figure(beside.get(name), spread[name]) for name in ("clip", "clip_upsampled")),
        _figure(entry["value"], entry["ci95"]),
        _figure(entry["gain"], entry["gain_ci95"], sign="+"),
    ]


def _figure(value: float | None, ends: list[float | None], sign: str = "") -> str:
    if value is None:
        return "-"
    low, high = (
        "?" if end is None else format(100 * end, f"{sign}.1f").replace("+-", "-") for end in ends
    )
    return f"{100 * value:{sign}.1f} ({low} to {high})"
