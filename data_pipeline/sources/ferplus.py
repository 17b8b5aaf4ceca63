"""``ferplus``: FER+, ten votes a face for the pictures of FER2013.

Row i of ``fer2013new.csv`` belongs to row i of ``fer2013.csv``; ``Image name`` counts the rows that
were kept, it is no row number. The other form is ``FER2013Train/label.csv`` and its two brothers,
without header, beside the pictures. How votes become targets changes results,
so the protocol says it (``labels/votes.py``). Source: microsoft/FERPlus, Barsoum et al. 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.labels.votes import TARGETS, leader
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import absent, cells, face, find, need, table, whole
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant
from data_pipeline.sources.fer2013 import VOTES, WHOLE, png
from face_mllm.errors import UserError

EMOTIONS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
)
COLUMNS = (*EMOTIONS, "unknown", "NF")
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
LABELS = tuple(f"{top}{FOLDERS['Training']}/label.csv" for top in ("", "data/"))
NO_TARGET = "no expression by the votes"


class FerplusOptions(SourceOptions):
    """Options of ``ferplus``.

    Args:
        fer2013: path from the root of ``fer2013.csv`` or its folder, where it does not lie beside
            ``fer2013new.csv``.
    """

    fer2013: Path | None = None


class Row(NamedTuple):
    """One face with its votes: a picture file, or the pixels of fer2013.csv as they stand."""

    where: str
    usage: str
    name: str
    votes: list[int]
    picture: Path | str


def read_rows(root: Path, options: FerplusOptions, protocol: Protocol) -> Rows:
    """Yield one record per face whose votes the protocol turns into a target.

    Raises:
        UserError: files that are missing or do not belong together, or a malformed row.
    """
    target, splits = TARGETS[protocol.settings["target"]], protocol.settings["splits"]
    names: set[str] = set()
    for row in _joined(root, options) if _tables(root, options) else _folders(root):
        shares = target(row.votes, EMOTIONS)
        if not row.name:
            yield Dropped("no image name: not a face", row.where)
        elif not shares:
            yield Dropped(NO_TARGET, row.where)
        else:
            stem = Path(row.name).stem
            # four names of the table stand for two pictures each
            key = f"{stem}_again" if stem in names else stem
            names.add(stem)
            labels = _labels(shares, protocol.settings["target"] == "probability")
            image = png(row.picture, row.where) if isinstance(row.picture, str) else row.picture
            yield face("ferplus", options, key, splits[row.usage], image, labels)


def _labels(shares: dict[str, float], soft: bool) -> dict[str, Any]:
    word = leader(shares)
    labels: dict[str, Any] = {"expression": word} if word else {}
    return labels | {"expression_votes": shares} if soft else labels


def _tables(root: Path, options: FerplusOptions) -> tuple[Path, Path] | None:
    """Return (votes, pixels), None when the pixels are nowhere and the folders are there."""
    pixels = find(root / (options.fer2013 or ""), *WHOLE)
    if find(root, VOTES) is None or (pixels is None and find(root, *LABELS)):
        need(root, *LABELS, VOTES)
        return None
    if pixels is None:
        raise UserError(
            f"{root}: {VOTES} without {WHOLE[0]}, which holds the pictures",
            "put it beside, or give its place as option `fer2013:`",
        )
    return need(root, VOTES), pixels


def _joined(root: Path, options: FerplusOptions) -> Iterator[Row]:
    tables = _tables(root, options)
    assert tables is not None
    votes, pixels = tables
    rows = zip_longest(table(votes, "Usage", "Image name", *COLUMNS), table(pixels, "pixels"))
    for ours, theirs in rows:
        if ours is None or theirs is None or ours[1]["Usage"] != theirs[1].get("Usage"):
            number = (ours or theirs)[0]
            raise UserError(
                f"{votes}: row {number} is not the face of row {number} of {pixels}",
                "the two are joined by row: take both as distributed, in their order",
            )
        where = f"{votes}: row {ours[0]}"
        counts = [whole(ours[1][name], f"{where}, column {name!r}") for name in COLUMNS]
        yield Row(where, ours[1]["Usage"], ours[1]["Image name"], counts, theirs[1]["pixels"])


def _folders(root: Path) -> Iterator[Row]:
    home = need(root, *LABELS).parent.parent
    for usage, folder in FOLDERS.items():
        path = home / folder / "label.csv"
        for number, row in cells(path):
            where = f"{path}: row {number}"
            if len(row) != len(COLUMNS) + 2:
                raise UserError(f"{where} has not {len(COLUMNS) + 2} cells", "mend the row")
            counts = [whole(cell, where) for cell in row[2:]]
            yield Row(where, usage, row[0], counts, home / folder / row[0])


def detect(root: Path) -> Variant | None:
    """Tell the table to be joined with FER2013's from the folders with pictures."""
    votes, pixels, folders = find(root, VOTES), find(root, *WHOLE), find(root, *LABELS)
    if votes is not None and (pixels is not None or folders is None):
        return Variant(f"{VOTES}, joined by row", () if pixels else (WHOLE[0],))
    if folders is None:
        return None
    home = folders.parent.parent
    return Variant(
        "folders with label.csv", absent(home, *(f"{name}/label.csv" for name in FOLDERS.values()))
    )


SOURCE = Source(
    name="ferplus",
    summary="FER+: ten votes a face, joined by row with fer2013.csv, or its label.csv folders",
    read_rows=read_rows,
    options=FerplusOptions,
    protocols=protocols("ferplus"),
    detect=detect,
    licence="MIT labels, image rights unresolved",
    overlaps=("fer2013", "mmafedb"),
)
