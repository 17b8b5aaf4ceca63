"""What readers of coded video frames share: places, numbered pictures, grades per frame, folds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from data_pipeline.protocols import Protocol
from data_pipeline.sources.base import IMAGE_SUFFIXES, LITTER, reading
from face_mllm.errors import UserError

AGAIN = "mend the line or unpack the labels again"
_NUMBER = re.compile(r"\d+")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly below one in order, none when it does not exist."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and path.name not in LITTER)


def find_base(root: Path, inside: str) -> Path | None:
    """Return the folder that holds ``inside``: root, one below it, or the one ``inside`` is in.

    The folder comes resolved, so every path made from it is absolute without asking the disk again.

    Args:
        inside: a relative path that tells the dataset, such as ``AUCoding/AU_OCC``.
    """
    root = root.resolve()
    parts = Path(inside).parts
    above = [
        Path(*root.parts[: -n - 1])
        for n in range(len(parts))
        if root.parts[-n - 1 :] == parts[: n + 1]
    ]
    for place in (root, *above, *subfolders(root)):
        if (place / inside).exists():
            return place
    return None


def need_base(root: Path, inside: str) -> Path:
    """Return :func:`find_base`, or say what was looked for.

    Raises:
        UserError: nothing of that name near root.
    """
    base = find_base(root, inside)
    if base is None:
        raise UserError(f"{root}: no {inside}", f"give the folder that holds {inside}")
    return base


def numbered_images(folder: Path) -> dict[int, Path]:
    """Return frame number -> picture from one listing of a folder, whatever padding it uses.

    The number is the last run of digits of the stem (``7``, ``0007``, ``SN001_0007``); other
    files beside the pictures do not count.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        digits = _NUMBER.findall(path.stem)
        if digits and path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(int(digits[-1]), path)
    return found


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of a label file; blank lines, ``#`` comments and CRLF pass.

    Raises:
        UserError: no such file, or not text.
    """
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if (text := line.strip()) and not text.startswith("#"):
                yield number, text


def frame_grades(
    path: Path, separator: str | None, missing: int | None = None
) -> dict[str, int | None]:
    """Return frame -> grade 0-5 of a file with one ``frame grade`` pair a line.

    Args:
        separator: between the two; None for blanks.
        missing: code of frames that were not graded; theirs is None.

    Raises:
        UserError: naming file and line of anything else.
    """
    grades: dict[str, int | None] = {}
    for number, text in read_lines(path):
        cells = [cell.strip() for cell in text.split(separator)]
        try:
            frame, grade = cells[0], float(cells[1])
        except (IndexError, ValueError):
            grade = float("nan")
        if len(cells) != 2 or grade not in (0, 1, 2, 3, 4, 5, missing):
            raise UserError(f"{path}: line {number}: {text!r} is no frame and grade 0-5", AGAIN)
        grades[frame] = None if grade == missing else int(grade)
    return grades


def merge_units(
    files: Mapping[int, Path], separator: str | None, missing: int | None = None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (frame, {"AU12": grade}) of one file per unit; an ungraded unit is left out."""
    tables = {f"AU{n}": frame_grades(files[n], separator, missing) for n in sorted(files)}
    for frame in dict.fromkeys(chain.from_iterable(tables.values())):
        found = ((unit, grades.get(frame)) for unit, grades in tables.items())
        yield frame, {unit: float(grade) for unit, grade in found if grade is not None}


def unit_files(folder: Path, pattern: str, units: list[int]) -> dict[int, Path]:
    """Return unit -> file for the units a protocol needs.

    The number is read from the name, never from the place in a listing: sorted as text, au12 comes
    before au2.

    Args:
        pattern: regular expression whose group is the number.

    Raises:
        UserError: the file of a unit is missing.
    """
    names = ((re.fullmatch(pattern, path.name, re.IGNORECASE), path) for path in folder.iterdir())
    found = {int(match.group(1)): path for match, path in names if match}
    for unit in units:
        if unit not in found:
            raise UserError(
                f"{folder}: no label file of AU{unit}",
                "unpack it again; a missing file is not the same as a unit that never occurs",
            )
    return {unit: found[unit] for unit in units}


def fold_split(protocol: Protocol, person: str) -> str | None:
    """Return test for the people of the protocol's test parts, train for the other parts.

    None for a person in no part: the protocol leaves them out.
    """
    settings = protocol.settings
    part = next((name for name, people in settings["parts"].items() if person in people), None)
    if part is None:
        return None
    return "test" if part in settings["test"] else "train"
