"""``caers``: CAER-S, scenes of television shows in class folders.

The pictures are whole frames, not crops, and their names repeat from class to class. A table of
face boxes made by others (``relpath,label,x1,y1,x2,y2``) can be given. Source: Lee et al. 2019.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._expression import (
    RESEARCH,
    absent,
    class_names,
    class_rows,
    find,
    need,
    number,
    table,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant

SETS = ("train", "test")
MARKS = tuple(f"{name}/Anger" for name in SETS)


class CaersOptions(SourceOptions):
    """Options of ``caers``.

    Args:
        boxes: csv ``relpath,label,x1,y1,x2,y2``, its path from the root; ``relpath`` ends in
            ``train/Anger/0001.png``; a frame without a row in it is dropped.
    """

    boxes: Path | None = None


def read_rows(root: Path, options: CaersOptions, protocol: Protocol) -> Rows:
    """Yield one record per frame, with its face box where a table of boxes is given.

    Raises:
        UserError: no class folders, a folder that is no class, or a malformed row of boxes.
    """
    home = need(root, *MARKS).parent.parent
    folders = [(name, home / name) for name in SETS if (home / name).is_dir()]
    boxes = _boxes(root / options.boxes) if options.boxes else None
    for row in class_rows("caers", options, folders, codes("caers", "expression")):
        if boxes is None or isinstance(row, Dropped):
            yield row
        else:
            yield _boxed(row, boxes)


def _boxed(row: FaceRecord, boxes: Mapping[str, array[float]]) -> FaceRecord | Dropped:
    where = "/".join(Path(str(row.image)).parts[-3:])
    box = boxes.get(where)
    return replace(row, box=tuple(box)) if box else Dropped("no face box", where)


def _boxes(path: Path) -> dict[str, array[float]]:
    sides = ("x1", "y1", "x2", "y2")
    rows = table(path, "relpath", *sides)
    return {
        "/".join(row["relpath"].replace("\\", "/").split("/")[-3:]): array(
            "f", (number(row[side], f"{path}: row {place}") for side in sides)
        )
        for place, row in rows
    }


def detect(root: Path) -> Variant | None:
    """Recognise its seven words: Anger, which SFEW and others call Angry, and no contempt."""
    found = find(root, *MARKS)
    if found is None or class_names(found.parent) != set(codes("caers", "expression")):
        return None
    notes = (
        "whole frames: give a table of boxes with `boxes:` or let faces be detected",
        "frames of the same clip stand in train and test",
    )
    return Variant("train and test class folders", absent(found.parent.parent, *SETS), notes)


SOURCE = Source(
    name="caers",
    summary="CAER-S: television scenes in class folders, face boxes by a separate table",
    read_rows=read_rows,
    options=CaersOptions,
    protocols=protocols("caers"),
    detect=detect,
    licence=RESEARCH,
)
