"""What readers of label lists share: finding a distribution, tables, columns of yes and no."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.labels.attributes import canonical_attribute
from data_pipeline.sources.base import reading, some
from face_mllm.errors import UserError

CHUNK = 20_000  # rows of a table in memory at a time


def home(root: Path, *marks: str, inner: Sequence[str] = ()) -> Path | None:
    """Return the folder of a distribution: the first of these that holds one of ``marks``.

    Looked at are the root, the folders in it and the one it lies in, which is how far users are
    off when they unpack archives.

    Args:
        root: as the user gave it.
        marks: paths that only this dataset has.
        inner: names of the dataset's own folders; a root so named is taken one level up.
    """
    if not root.is_dir():
        return None
    if root.name in inner:
        root = root.resolve().parent
    if _holds(root, marks):
        return root
    with os.scandir(root) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir())
    candidates = [*(root / name for name in inside), root.resolve().parent]
    return next((folder for folder in candidates if _holds(folder, marks)), None)


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    return any((folder / mark).exists() for mark in marks)


def first(folder: Path, *names: str) -> Path | None:
    """Return the first of ``names`` that exists in ``folder``."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def need_home(root: Path, what: str, *marks: str, inner: Sequence[str] = ()) -> Path:
    """Return :func:`home`.

    Raises:
        UserError: naming the file that makes a folder ``what``.
    """
    found = home(root, *marks, inner=inner)
    if found is None:
        raise UserError(
            f"{root}: not {what}: no {marks[0]}",
            f"give the folder that holds {some(marks)}",
        )
    return found


def need(folder: Path, *names: str) -> Path:
    """Return :func:`first`.

    Raises:
        UserError: naming the missing file.
    """
    found = first(folder, *names)
    if found is None:
        raise UserError(
            f"{folder / names[0]}: no such file", "it belongs to the dataset; download it too"
        )
    return found


def absent(folder: Path, *groups: Sequence[str]) -> tuple[str, ...]:
    """Return the first name of every group of which ``folder`` holds none."""
    return tuple(names[0] for names in groups if first(folder, *names) is None)


def read_list(path: Path, names: Sequence[str], skip: int = 0) -> pd.DataFrame:
    """Read a list without header whose columns stand apart by any run of spaces.

    Args:
        path: text file.
        names: of the columns; the first is text, the others as they are.
        skip: lines before the first row.
    """
    with reading(path, ValueError):
        return pd.read_csv(
            path,
            sep=r"\s+",
            header=None,
            names=list(names),
            skiprows=skip,
            dtype={names[0]: str},
            index_col=False,
            low_memory=False,
            encoding="utf-8-sig",
        )


def iter_csv(
    path: Path, columns: Sequence[str], text: bool = True, rows: int = CHUNK
) -> Iterator[pd.DataFrame]:
    """Stream the named columns of a csv with header; spaces around header names do not count.

    Args:
        path: csv file.
        columns: those wanted; the first is always text.
        text: read every cell as text (an empty one is ``""``).
        rows: at a time; the index of the frames counts data rows from 1.

    Raises:
        UserError: no such file, no such column, or a row the parser cannot read.
    """
    header = csv_header(path)
    for column in columns:
        if column not in header:
            raise UserError(f"{path}: no column {column!r}", f"columns are {', '.join(header)}")
    kinds: Any = str if text else {columns[0]: str}
    with (
        reading(path, ValueError),
        pd.read_csv(
            path,
            header=0,
            names=header,
            usecols=list(columns),
            dtype=kinds,
            keep_default_na=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
            index_col=False,
            chunksize=rows,
            low_memory=False,
        ) as frames,
    ):
        for frame in frames:
            frame.index += 1
            yield frame[list(columns)]


def csv_header(path: Path) -> list[str]:
    """Return the column names of a csv without the spaces and quotes around them."""
    with reading(path, ValueError), path.open(encoding="utf-8-sig", newline="") as file:
        return [name.strip().strip("\"'") for name in file.readline().strip().split(",")]


class Flags:
    """Columns of yes and no to canonical attributes, whole tables at a time.

    Two columns may speak of one attribute (``No_Eyewear`` and ``Eyeglasses``); where they
    contradict each other it is unknown.

    Args:
        columns: names as the dataset spells them; ``No_Beard`` is inverted.
        meaning: code -> true, false, or None for unknown.
    """

    def __init__(self, columns: Sequence[str], meaning: Mapping[Any, Any]) -> None:
        self.columns = list(columns)
        self.signs = {
            code: 0 if value is None else 1 if value else -1 for code, value in meaning.items()
        }
        pairs = [canonical_attribute(column) for column in columns]
        self.turn = np.array([-1 if negated else 1 for _, negated in pairs], np.int8)
        self.names = list(dict.fromkeys(name for name, _ in pairs))
        self.spots = [[i for i, pair in enumerate(pairs) if pair[0] == n] for n in self.names]

    def rows(self, table: pd.DataFrame, path: Path) -> list[list[int]]:
        """Return per row of ``table`` 1, -1 or 0 (unknown) for each of ``names``.

        Raises:
            UserError: naming file, row and column of the first code without meaning.
        """
        raw = table[self.columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
        signs = np.full(raw.shape, 2, np.int8)
        for code, sign in self.signs.items():
            signs[raw == code] = sign
        if (signs == 2).any():
            row, column = map(int, np.argwhere(signs == 2)[0])
            raise UserError(
                f"{path}: row {table.index[row]}, column {self.columns[column]!r}: "
                f"{str(table[self.columns[column]].iloc[row])!r} is none of "
                f"{', '.join(map(str, self.signs))}",
                "mend the row or download the file again",
            )
        signs *= self.turn
        both = [signs[:, spot].max(1) + signs[:, spot].min(1) for spot in self.spots]
        return np.sign(np.stack(both, 1)).tolist()

    def labels(self, row: Sequence[int]) -> dict[str, Any]:
        """Return the labels of one row; ``male`` is an attribute and the gender."""
        known = {name: sign > 0 for name, sign in zip(self.names, row, strict=True) if sign}
        found: dict[str, Any] = {"attributes": known} if known else {}
        if "male" in known:
            found["gender"] = "male" if known["male"] else "female"
        return found


def translated(column: pd.Series, meaning: Mapping[Any, Any], path: Path) -> list[Any]:
    """Return the words of a text column in canonical form; case and outer spaces do not count.

    Raises:
        UserError: naming file, row and column of the first word without meaning.
    """
    words = column.str.strip().str.lower()
    table = {str(code).lower(): value for code, value in meaning.items()}
    unknown = ~words.isin(list(table))
    if unknown.any():
        row = column.index[unknown.argmax()]
        raise UserError(
            f"{path}: row {row}, column {column.name!r}: {column[row]!r} is none of "
            f"{', '.join(map(str, meaning))}",
            "mend the row or download the file again",
        )
    return [table[word] for word in words]
