"""``emotionet``: web faces with up to 60 action units scored present or absent.

``EmotioNet_FACS_aws_2020_24600.csv`` has the columns ``URL``, ``URL orig``, ``'AU 1'`` ...
``'AU 60'`` with quotes and blanks inside header and cells; older tab-separated ``.txt`` lists have
the same columns and no header. 999 is "not scored". Pictures are downloaded by the user: the last
part of the address is looked for in one folder, flat or one folder per prefix
(``N_0000000001/N_0000000001_00001.jpg``); links rot, so absent ones are the build's to drop.
Units outside FACS's facial registry (head and eye codes) are not read.
Layout: py-feat's loaders; EMOCA's EmotioNet tools.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from data_pipeline.labels.action_units import action_units
from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import subfolders
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
    reading,
)
from face_mllm.errors import UserError

TABLE = "EmotioNet_FACS*.csv"
PICTURES = ("imgs", "images", "Images", "Aligned")
_UNITS = 60
_QUOTES = " \t'\""


class EmotioNetOptions(SourceOptions):
    """Options of ``emotionet``.

    Args:
        images: folder of the downloaded pictures, relative to the root; found by its usual names.
    """

    images: str = ""


def read_rows(root: Path, options: EmotioNetOptions, protocol: Protocol) -> Rows:
    """Yield one record per scored picture.

    Raises:
        UserError: no table or lists, a column or row of another form, or an unknown code.
    """
    name = options.name or "emotionet"
    folder = _pictures(root, options)
    words = {str(code): word for code, word in codes("emotionet", "action_unit").items()}
    for where, address, cells in _rows(root):
        for unit, cell in cells.items():
            if cell not in words:
                raise UserError(
                    f"{where}: {cell!r} for {unit} is no code 0, 1 or 999", "mend the row"
                )
        units = {unit: word for unit, cell in cells.items() if (word := words[cell]) is not None}
        picture = PurePosixPath(address).name
        if not picture:
            yield Dropped("no address of a picture", where)
        elif not units:
            yield Dropped("no unit is scored (999)", where)
        else:
            key = f"{name}_{PurePosixPath(picture).stem}"
            yield FaceRecord(
                id=key,
                source=name,
                split=hash_split(key, protocol.settings["split"]),
                subject=key,
                image=str(_place(folder, picture)),
                labels={"action_units": units},
                licence=options.licence,
            )


def _rows(root: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, address, {"AU1": cell}) of every row."""
    for path in _label_files(root):
        with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            header = [cell.strip(_QUOTES) for cell in next(rows, [])] if delimiter == "," else None
            columns = _columns(path, header)
            for number, row in enumerate(rows, start=1 if header is None else 2):
                cells = [cell.strip(_QUOTES) for cell in row]
                if not any(cells):
                    continue
                if len(cells) != (_UNITS + 2 if header is None else len(header)):
                    raise UserError(f"{path}: row {number} has {len(cells)} cells", "mend the row")
                found = {unit: cells[n].removesuffix(".0") for unit, n in columns.items()}
                yield f"{path}: row {number}", cells[0], found


def _columns(path: Path, header: list[str] | None) -> dict[str, int]:
    """Unit -> column of the facial units."""
    if header is None:
        numbers = {unit: unit + 1 for unit in range(1, _UNITS + 1)}
    else:
        names = {cell.replace(" ", ""): n for n, cell in enumerate(header)}
        numbers = {unit: names[f"AU{unit}"] for unit in range(1, 100) if f"AU{unit}" in names}
        if header[:1] != ["URL"] or not numbers:
            raise UserError(f"{path}: no columns URL and AU 1, AU 2, ...", "give the FACS table")
    return {unit.label: numbers[n] for n, unit in action_units().items() if n in numbers}


def _label_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    places = [root, *(path for path in subfolders(root) if path.name not in PICTURES)]
    tables = sorted(path for place in places for path in place.glob(TABLE))
    if found := tables[:1] or sorted(root.glob("*.txt")):
        return found
    workbook = next((path for place in places for path in place.glob("EmotioNet*.xlsx")), None)
    if workbook:
        raise UserError(f"{workbook}: a workbook is not read", "save it as csv under the same name")
    raise UserError(f"{root}: no {TABLE} and no .txt lists", "give the folder that holds them")


def _pictures(root: Path, options: EmotioNetOptions) -> Path:
    folder = root if root.is_dir() else root.parent
    names = [options.images] if options.images else PICTURES
    return next((folder / name for name in names if (folder / name).is_dir()), folder).resolve()


@lru_cache(maxsize=4096)
def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _place(folder: Path, picture: str) -> Path:
    nested = folder / picture.rpartition("_")[0]
    return (nested if nested != folder and _is_folder(nested) else folder) / picture


def detect(root: Path) -> Variant | None:
    """Recognise the 2020 table, or the older lists by their first line."""
    try:
        where, address, cells = next(_rows(root))
    except (UserError, StopIteration, OSError, UnicodeDecodeError):
        return None
    if not cells or "/" not in address:
        return None
    table = ".csv: row" in where
    folder = _pictures(root, EmotioNetOptions())
    missing = () if folder.name in PICTURES else ("folder of the downloaded pictures (imgs)",)
    return Variant("EmotioNet FACS table" if table else "EmotioNet text lists", missing)


SOURCE = Source(
    name="emotionet",
    summary="EmotioNet: EmotioNet_FACS_aws_2020_24600.csv or tab-separated lists, and pictures",
    read_rows=read_rows,
    options=EmotioNetOptions,
    protocols=protocols("emotionet"),
    detect=detect,
    licence="research only, agreement signed, no product development",
)
