"""What the expression readers share: finding a distribution, decoding its rows, class folders."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.labels.codes import codes
from data_pipeline.questions.forms import digest
from data_pipeline.records import FaceRecord
from data_pipeline.sources.base import (
    IMAGE_SUFFIXES,
    LITTER,
    Dropped,
    Rows,
    SourceOptions,
    reading,
    record_id,
    some,
)
from data_pipeline.sources.folder import subfolders
from face_mllm.errors import UserError

RESEARCH = "non-commercial research, agreement"
UNSETTLED = "image rights unresolved"


def find(root: Path, *marks: str) -> Path | None:
    """Return the first of ``marks`` that exists under ``root`` or one level below it.

    People point at the folder a dataset unpacked to or at the one around it; both are meant.
    """
    if not root.is_dir():
        return root if root.is_file() and root.name in {Path(mark).name for mark in marks} else None
    places = (folder / mark for folder in (root, *subfolders(root)) for mark in marks)
    return next((place for place in places if place.exists()), None)


def need(root: Path, *marks: str, remedy: str = "") -> Path:
    """Return what :func:`find` finds.

    Raises:
        UserError: when none of ``marks`` is there.
    """
    found = find(root, *marks)
    if found is None:
        raise UserError(f"{root}: no {some(marks)}", remedy or "point root at the unpacked dataset")
    return found


def absent(folder: Path, *names: str) -> tuple[str, ...]:
    """Return those of ``names`` that are not in ``folder``, for ``Variant.missing``."""
    return tuple(name for name in names if not (folder / name).exists())


def listed(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of the lines that are not blank; CRLF and BOM are fine."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for row, line in enumerate(file, start=1):
            if text := line.strip():
                yield row, text


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (row number from 1, cells without blanks around them) of a csv file."""
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        for place, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if any(found := [cell.strip() for cell in row]):
                yield place, found


def table(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (data row number from 1, cells by column) of a csv file with a header.

    Raises:
        UserError: a missing column, or a row of another length.
    """
    rows = cells(path)
    header = next(rows, (0, []))[1]
    for column in columns:
        if column not in header:
            raise UserError(f"{path}: no column {column!r}", f"columns are {', '.join(header)}")
    for place, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}: row {place - 1} has not {len(header)} cells", "mend the row")
        yield place - 1, dict(zip(header, row, strict=True))


def number(raw: object, where: str) -> float:
    """Return a cell as a finite number.

    Raises:
        UserError: when it is none, naming ``where``.
    """
    try:
        found = float(str(raw))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {raw!r} is not a number", "mend the row")
    return found


def whole(raw: object, where: str) -> int:
    """Return a cell as a whole number; ``3.0`` and ``3.0e+00`` count as 3.

    Raises:
        UserError: when it is none, naming ``where``.
    """
    found = number(raw, where)
    if not found.is_integer():
        raise UserError(f"{where}: {raw!r} is not a whole number", "mend the row")
    return int(found)


def decode(source: str, field: str, raw: object, where: str) -> Any:
    """Return the canonical word of a numeric code, None where it means unknown.

    Raises:
        UserError: a code the dataset does not have, naming ``where``.
    """
    known = codes(source, field)
    code = whole(raw, where)
    if code not in known:
        raise UserError(
            f"{where}: {code} is no {field} of {source}",
            f"known codes are {', '.join(map(str, known))}: is this another dataset's list?",
        )
    return known[code]


def once(rows: Rows) -> Rows:
    """Pass the rows on; of records with the same id only the first (8 bytes of key per face)."""
    seen: set[int] = set()
    for row in rows:
        if isinstance(row, FaceRecord):
            key = digest(row.id)
            if key in seen:
                row = Dropped("listed twice", row.id)
            seen.add(key)
        yield row


def without(rows: Rows, words: Collection[str]) -> Rows:
    """Pass the rows on, those whose expression is one of ``words`` as dropped."""
    for row in rows:
        if isinstance(row, FaceRecord) and row.labels.get("expression") in words:
            row = Dropped(f"{row.labels['expression']} left out by the protocol", row.id)
        yield row


def face(
    source: str,
    options: SourceOptions,
    key: str,
    split: str,
    image: Path | bytes,
    labels: dict[str, Any],
    subject: str = "",
    box: tuple[float, ...] = (),
) -> FaceRecord:
    """Return a record; without ``subject`` the picture counts as its own."""
    name = options.name or source
    identity = record_id(name, key)
    return FaceRecord(
        id=identity,
        source=name,
        split=split,
        subject=record_id(name, subject) if subject else identity,
        image=image if isinstance(image, bytes) else str(image.absolute()),
        labels=labels,
        box=box,
        licence=options.licence,
    )


def class_names(folder: Path) -> set[str]:
    """Return the names of the folders in one, none where it is not there."""
    return {place.name for place in subfolders(folder)} if folder.is_dir() else set()


def class_images(folder: Path, words: Mapping[Any, Any]) -> Iterator[tuple[Path, str] | Dropped]:
    """Yield (image, word) of a folder with one subfolder per class.

    Raises:
        UserError: a subfolder that is no class.
    """
    known = {str(name).lower(): word for name, word in words.items()}
    for place in subfolders(folder):
        if place.name.lower() not in known:
            raise UserError(f"{place}: not a class folder", f"expected {', '.join(known)}")
        for name in sorted(os.listdir(place)):  # names, not paths: a class may hold 134,415
            if name in LITTER:
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield place / name, known[place.name.lower()]
            else:
                yield Dropped("not an image file", f"{folder.name}/{place.name}/{name}")


def class_rows(
    source: str,
    options: SourceOptions,
    folders: Iterable[tuple[str, Path]],
    words: Mapping[Any, Any],
) -> Rows:
    """Yield a record per image of (split, folder of class folders)."""
    for split, folder in folders:
        for item in class_images(folder, words):
            if isinstance(item, Dropped):
                yield item
                continue
            path, word = item
            key = f"{split}_{path.parent.name}_{path.stem}"
            yield face(source, options, key, split, path, {"expression": word})
