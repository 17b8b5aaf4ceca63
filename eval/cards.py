"""The contact sheet: some measured faces with what is true of them and what the model said."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from eval.tasks import UNITS, in_order, rank

if TYPE_CHECKING:
    from eval.run import Measured

FACES = 24
CLOSE = {"age": 10.0, "head_pose": 10.0}  # an error up to here is shown as right
_SIDE = 160


@dataclass(frozen=True)
class Chip:
    """One answer: its text and ``right``, ``wrong`` (said otherwise) or ``missed`` (not said)."""

    text: str
    verdict: str


@dataclass
class Card:
    """One face: picture and answers by task."""

    id: str
    picture: str
    lines: list[tuple[str, list[Chip]]] = field(default_factory=list)


def cards(measured: Measured, seed: int, count: int = FACES) -> list[Card]:
    """Cards of faces drawn by hash of id, so neither the best nor the worst are picked."""
    scorer = measured.results[0]["scorer"]
    rows = measured.predictions[measured.predictions["scorer"] == scorer]
    drawn = sorted(rows["id"].unique(), key=lambda face: rank(face, seed + 1))[:count]
    wanted = rows[rows["id"].isin(drawn)].groupby("id")
    return [
        _card(record.open_image(), record.id, wanted.get_group(record.id))
        for record in measured.faces.pick(set(drawn))
    ]


def _card(image: Image.Image, face: str, rows: pd.DataFrame) -> Card:
    card = Card(face, data_uri(image))
    for task in in_order(list(rows["task"].unique())):
        part = rows[rows["task"] == task]
        chips = [chip for row in part.itertuples() if (chip := _chip(row))]
        card.lines.append((task, chips or [Chip("none", "right")]))
    return card


def _chip(row: object) -> Chip | None:
    kind, name = row.kind, row.name.replace("_", " ")  # type: ignore[attr-defined]
    if kind == "numeric":
        return _number(row, name)
    if kind == "binary":
        return _yes_no(row, name)
    return _word(row)


def _number(row: object, name: str) -> Chip:
    truth, guess, task = row.truth, row.prediction, row.task  # type: ignore[attr-defined]
    verdict = "right" if abs(truth - guess) <= CLOSE.get(task, 0) else "wrong"
    unit = {"degrees": "\u00b0", "years": " y"}.get(UNITS.get(task, ""), "")
    label = "" if name == "all" else f"{name} "
    return Chip(f"{label}{round(guess)}{unit} (true {round(truth)})", verdict)


def _yes_no(row: object, name: str) -> Chip | None:
    """Only what is there or was said to be there; a rightly denied name takes no room."""
    true, said = row.truth == 0, row.prediction == 0  # type: ignore[attr-defined]
    if true and said:
        return Chip(name, "right")
    if true:
        return Chip(name, "missed")
    return Chip(name, "wrong") if said else None


def _word(row: object) -> Chip:
    choices, truth, guess = row.choices, row.truth, row.prediction  # type: ignore[attr-defined]
    true = choices[int(truth)]
    if guess != guess:  # NaN: unreadable
        return Chip(f"unreadable (true {true})", "wrong")
    if guess == truth:
        return Chip(true, "right")
    return Chip(f"{choices[int(guess)]} (true {true})", "wrong")


def data_uri(image: Image.Image, side: int = _SIDE) -> str:
    """A small JPEG of an image as a data URI."""
    copy = image.copy()
    copy.thumbnail((side, side))
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
