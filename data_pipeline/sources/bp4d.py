"""``bp4d``: 41 people, eight tasks; 12 action units coded present or absent, 5 graded 0-5.

Occurrence: ``AUCoding/AU_OCC/F001_T1.csv``. The header is either 0..99 (column N is AU N, column 0
the frame) or names the units (``1,1,2,4,5,...``, where the first cell only repeats), so columns are
taken by position. Intensity: ``AUCoding/AU_INT/AU06/F001_T1_AU06.csv``, ``frame,grade``. 9 is "not
coded" in both. Frame numbers are unpadded while picture names have three or four digits: each
folder is listed. Layout: CVI-SZU/ME-GraphAU tool/BP4D_image_label_process.py; py-feat's loaders.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import (
    AGAIN,
    find_base,
    fold_split,
    merge_units,
    need_base,
    numbered_images,
    subfolders,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, reading
from face_mllm.errors import UserError

OCCURRENCE, INTENSITY = "AUCoding/AU_OCC", "AUCoding/AU_INT"
PICTURES = ("Sequences_2D+3D", "Sequences(2D+3D)", "2D+3D", "Sequences", "img")
_SEQUENCE = re.compile(r"([FM]\d{3})_(T\d+)")
_NAMED_BELOW = 50  # a header with fewer columns names its units
_NOT_CODED = 9
_SEQUENCES = 328

Coded = Iterator[tuple[int, dict[str, Any]]]


class Bp4dOptions(SourceOptions):
    """Options of ``bp4d``.

    Args:
        images: folder of the pictures, relative to the dataset; found by its usual names.
    """

    images: str = ""


def read_rows(root: Path, options: Bp4dOptions, protocol: Protocol) -> Rows:
    """Yield one record per coded frame.

    Raises:
        UserError: no labels for the protocol's coding, or a malformed label file.
    """
    graded = protocol.settings["coding"] == "intensity"
    base = need_base(root, INTENSITY if graded else OCCURRENCE)
    pictures = base / (options.images or _pictures(base) or PICTURES[0])
    name = options.name or "bp4d"
    for person, task, coded in _graded(base, protocol) if graded else _coded(base, protocol):
        split = fold_split(protocol, person)
        if split is None:
            yield Dropped(f"person is in no part of {protocol.name}", f"{person}_{task}")
            continue
        images = numbered_images(pictures / person / task)
        for frame, labels in coded:
            key = f"{person}_{task}_{frame:04d}"
            if not labels:
                yield Dropped("no unit is coded (9)", key)
                continue
            image = images.get(frame, pictures / person / task / f"{frame:04d}.jpg")
            yield FaceRecord(
                id=f"{name}_{key}",
                source=name,
                split=split,
                subject=f"bp4d_{person}",
                image=str(image),
                labels={"action_units": labels},
                licence=options.licence,
            )


def _pictures(base: Path) -> str | None:
    return next((name for name in PICTURES if (base / name).is_dir()), None)


def _sequences(folder: Path, ending: str) -> list[tuple[str, str]]:
    """(person, task) of the label files of a folder, in order."""
    names = (re.fullmatch(_SEQUENCE.pattern + ending, path.name) for path in folder.iterdir())
    return sorted((match.group(1), match.group(2)) for match in names if match)


def _coded(base: Path, protocol: Protocol) -> Iterator[tuple[str, str, Coded]]:
    folder = base / OCCURRENCE
    for person, task in _sequences(folder, r"\.csv"):
        path = folder / f"{person}_{task}.csv"
        yield person, task, _occurrence(path, protocol.settings["units"])


def _occurrence(path: Path, units: list[int]) -> Coded:
    words = {str(code): word for code, word in codes("bp4d", "action_unit").items()}
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = [cell.strip() for cell in next(rows, [])]
        columns = _columns(path, header, units)
        for number, row in enumerate(rows, start=2):
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            bad = len(cells) != len(header) or not cells[0].isdecimal()
            if bad or any(cells[column] not in words for column in columns.values()):
                raise UserError(
                    f"{path}: row {number} is no frame with {len(header) - 1} codes 0, 1 or 9",
                    "unpack the labels again",
                )
            found = {f"AU{unit}": words[cells[column]] for unit, column in columns.items()}
            yield int(cells[0]), {unit: word for unit, word in found.items() if word is not None}


def _columns(path: Path, header: list[str], units: list[int]) -> dict[int, int]:
    """Unit -> column. The first column is the frame whatever its header says."""
    if len(header) < _NAMED_BELOW:
        columns = {int(cell): n for n, cell in enumerate(header) if n and cell.isdecimal()}
    else:
        columns = {n: n for n, cell in enumerate(header) if n and cell == str(n)}
    for unit in units:
        if unit not in columns:
            raise UserError(f"{path}: no column of AU{unit}", "unpack the labels again")
    return {unit: columns[unit] for unit in units}


def _graded(base: Path, protocol: Protocol) -> Iterator[tuple[str, str, Coded]]:
    folders = {unit: base / INTENSITY / f"AU{unit:02d}" for unit in protocol.settings["units"]}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder", "unpack the intensity labels again")
    first, folder = next(iter(folders.items()))
    for person, task in _sequences(folder, rf"_AU{first:02d}\.csv"):
        files = {
            unit: place / f"{person}_{task}_{place.name}.csv" for unit, place in folders.items()
        }
        yield person, task, _grades(files, protocol)


def _grades(files: dict[int, Path], protocol: Protocol) -> Coded:
    for frame, grades in merge_units(files, ",", missing=_NOT_CODED):
        if not frame.isdecimal():
            raise UserError(f"{next(iter(files.values()))}: {frame!r} is no frame number", AGAIN)
        yield int(frame), grades


def detect(root: Path) -> Variant | None:
    """Recognise the occurrence labels and which header they have."""
    base = find_base(root, OCCURRENCE)
    sequences = _sequences(base / OCCURRENCE, r"\.csv") if base else []
    if base is None or not sequences:
        return None
    person, task = sequences[0]
    path = base / OCCURRENCE / f"{person}_{task}.csv"
    with reading(path), path.open(encoding="utf-8-sig") as file:
        named = file.readline().count(",") + 1 < _NAMED_BELOW
    missing = [INTENSITY] if not (base / INTENSITY).is_dir() else []
    if len(sequences) < _SEQUENCES:
        missing.append(f"{OCCURRENCE}: {len(sequences)} of {_SEQUENCES} files")
    pictures = _pictures(base)
    people = subfolders(base / pictures) if pictures else []
    return Variant(
        f"BP4D, occurrence files with {'unit names' if named else 'numbered columns'}",
        tuple(missing if people else [*missing, PICTURES[0]]),
        (f"pictures in {pictures}",) if people else (),
    )


SOURCE = Source(
    name="bp4d",
    summary="BP4D: AUCoding/AU_OCC/F001_T1.csv, AU_INT, Sequences_2D+3D/F001/T1/2440.jpg",
    read_rows=read_rows,
    options=Bp4dOptions,
    protocols=protocols("bp4d"),
    detect=detect,
    licence="research only, agreement signed (also covers parameter sets)",
)
