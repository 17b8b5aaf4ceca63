"""``affectnet2017``: AffectNet as first distributed, whole photographs with a face box in a csv.

``training.csv`` and ``validation.csv`` name ``1/<hash>.jpg``; codes 8-10 are no emotion. Some
copies lost the header row. Source: the lists of the distribution; Mollahosseini et al. 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    RESEARCH,
    absent,
    cells,
    decode,
    face,
    find,
    need,
    number,
    once,
    without,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant
from face_mllm.errors import UserError

COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
FOLDERS = ("Manually_Annotated_file_lists/", "Manual_Annot_files/", "")
IMAGES = tuple(
    f"{inside}Manually_Annotated_Images"
    for inside in ("Manually_Annotated/", "Manually_Annotated_compressed/Manually_Annotated/", "")
)


def _list(root: Path, name: str) -> tuple[str, ...]:
    return tuple(f"{folder}{name}.csv" for folder in FOLDERS)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row in the file, cells by column); a first row of other words is data."""
    columns: tuple[str, ...] = COLUMNS
    for place, row in cells(path):
        if place == 1 and COLUMNS[0] in row:
            columns = tuple(row)
            if lost := [name for name in COLUMNS[:7] if name not in row]:
                raise UserError(f"{path}: no column {lost[0]!r}", f"columns are {', '.join(row)}")
            continue
        if len(row) != len(columns):
            raise UserError(f"{path}: row {place} has not {len(columns)} cells", "mend the row")
        yield place, dict(zip(columns, row, strict=True))


def _box(row: dict[str, str], where: str) -> tuple[float, ...] | None:
    sides = [row[name] for name in COLUMNS[1:5]]
    if any(side.upper() in ("", "NULL", "NAN") for side in sides):
        return None
    x, y, width, height = (number(side, where) for side in sides)
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def _on_disk(path: Path) -> Path:
    """Return the path, or the one with the suffix in the other case where only that exists."""
    if not path.exists():
        for suffix in (path.suffix.lower(), path.suffix.upper()):
            if (other := path.with_suffix(suffix)).exists():
                return other
    return path


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per row of the two lists whose expression the protocol keeps.

    Raises:
        UserError: a list or the image folder is missing, or a row is malformed.
    """
    rows = once(_read(root, options, protocol))
    yield from without(rows, protocol.settings["left_out"])


def _read(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    images = need(root, *IMAGES)
    for name, split in protocol.settings["splits"].items():
        path = need(root, *_list(root, name))
        for place, row in _rows(path):
            where = f"{path}: row {place}"
            word = decode("affectnet2017", "expression", row["expression"], where)
            box = _box(row, where)
            if word is None:
                yield Dropped(f"code {row['expression']} is no expression", where)
            elif box is None:
                yield Dropped("no face box", where)
            else:
                photo = _on_disk(images / row[COLUMNS[0]].replace("\\", "/"))
                labels = {"expression": word}
                yield face("affectnet2017", options, photo.stem, split, photo, labels, box=box)


def detect(root: Path) -> Variant | None:
    """Recognise the lists, say whether they have a header and whether the photographs are there."""
    lists = [find(root, *_list(root, name)) for name in ("training", "validation")]
    present = [path for path in lists if path is not None]
    if not present:
        return None
    first = next(cells(present[0]), (0, [""]))[1]
    if len(first) != len(COLUMNS):
        return None
    notes = () if COLUMNS[0] in first else (f"{present[0].name} has no header row",)
    gaps = absent(present[0].parent, "training.csv", "validation.csv")
    if find(root, *IMAGES) is None:
        gaps += (IMAGES[0],)
    return Variant("2017 distribution, csv lists and whole photographs", gaps, notes)


SOURCE = Source(
    name="affectnet2017",
    summary="AffectNet 2017 csv lists: whole photographs with a face box",
    read_rows=read_rows,
    protocols=protocols("affectnet2017"),
    detect=detect,
    licence=RESEARCH,
    overlaps=("affectnet2021",),
)
