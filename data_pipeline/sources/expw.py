"""``expw``: ExpW, several faces in a photograph, from ``label/label.lst``.

``image_name face_id top left right bottom confidence expression``, blanks between, no header: the
box order is top, left, right, bottom (readers in the wild take it for x y w h). FER2013's codes.
Source: the readme of the distribution; Zhang et al. 2018.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    UNSETTLED,
    decode,
    face,
    find,
    listed,
    need,
    number,
    once,
)
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
    record_id,
)
from face_mllm.errors import UserError

LIST = ("label/label.lst", "label.lst")
IMAGES = ("image/origin", "origin", "image")
CELLS = 8


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per face; the faces of a photograph stay in one split.

    Raises:
        UserError: the list or the photographs' folder is missing, or a malformed line.
    """
    yield from once(_read(root, options, protocol))


def _read(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    path = need(root, *LIST)
    images = need(root if root.is_dir() else root.parent.parent, *IMAGES)
    for line, text in listed(path):
        where = f"{path}: line {line}"
        row = text.rsplit(None, CELLS - 1)
        if len(row) != CELLS:
            raise UserError(f"{where} has not {CELLS} cells", "mend the line")
        labels = {"expression": decode("expw", "expression", row[7], where)}
        top, left, right, bottom = (number(cell, where) for cell in row[2:6])
        if right <= left or bottom <= top:
            yield Dropped("empty face box", where)
            continue
        photo = Path(row[0]).stem
        split = hash_split(record_id(options.name or "expw", photo), protocol.settings["split"])
        box = (left, top, right, bottom)
        key = f"{photo}_{row[1]}"
        yield face("expw", options, key, split, images / row[0], labels, photo, box)


def detect(root: Path) -> Variant | None:
    """Recognise ``label.lst`` by its eight cells."""
    path = find(root, *LIST)
    if path is None:
        return None
    first = next(listed(path), (0, ""))[1]
    if len(first.rsplit(None, CELLS - 1)) != CELLS:
        return None
    missing = () if find(root, *IMAGES) else (IMAGES[0],)
    return Variant("label.lst and whole photographs", missing, ("boxes: top, left, right, bottom",))


SOURCE = Source(
    name="expw",
    summary="ExpW: several faces a photograph, label.lst with face boxes",
    read_rows=read_rows,
    protocols=protocols("expw"),
    detect=detect,
    licence=UNSETTLED,
)
