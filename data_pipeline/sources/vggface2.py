"""``vggface2``: VGGFace2 with its meta list: gender per identity (Cao et al. 2018).

``identity_meta.csv`` has spaces after its commas, quoted names that hold commas and a comma at the
end of rows; person's names are read over, not stored. Pictures come from ``loose_bb_*.csv`` (with
boxes, which are taken to refer to the loosely cropped files), else ``*_list.txt``, else folders.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import (
    absent,
    first,
    home,
    iter_csv,
    need,
    need_home,
)
from data_pipeline.sources.base import (
    IMAGE_SUFFIXES,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
    reading,
)
from face_mllm.errors import UserError

META = ("meta/identity_meta.csv", "identity_meta.csv")
PARTS = ("train", "test")
INNER = ("meta", "data", "bb_landmark")


def _boxes(part: str) -> tuple[str, ...]:
    return (f"bb_landmark/loose_bb_{part}.csv", f"loose_bb_{part}.csv")


def _lists(part: str) -> tuple[str, ...]:
    return tuple(f"{folder}{part}_list.txt" for folder in ("", "meta/", "data/"))


def _folders(part: str) -> tuple[str, ...]:
    return (part, f"data/{part}")


@cache
def person_folder(base: Path, person: str) -> tuple[str, Path] | None:
    """Return (train or test, folder) of an identity's pictures, None when it has none."""
    for part in PARTS:
        for name in _folders(part):
            if (base / name / person).is_dir():
                return part, base / name / person
    return None


def detect(root: Path) -> Variant | None:
    """Recognise VGGFace2 by its meta list or a list of boxes."""
    base = home(root, *META, *_boxes("train"), *_boxes("test"), inner=INNER)
    if base is None:
        return None
    boxes = any(first(base, *_boxes(part)) for part in PARTS)
    missing = absent(base, META, *(_folders(part) for part in PARTS))
    return Variant("with boxes" if boxes else "without boxes", missing)


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield a record per listed picture, training identities first.

    Raises:
        UserError: no meta list, a row of it without gender, or no pictures at all.
    """
    base, name = need_home(root, "VGGFace2", *META, inner=INNER), options.name or "vggface2"
    genders, hold_out = _genders(need(base, *META)), protocol.settings.get("hold_out")
    empty = True
    for part in PARTS:
        folder = (first(base, *_folders(part)) or base / part).resolve()
        for file, box in _pictures(base, part):
            empty, person = False, file.split("/", 1)[0]
            subject = f"{name}_{person}"
            yield FaceRecord(
                id=f"{name}_{file.rsplit('.', 1)[0].replace('/', '_')}",
                source=name,
                split=hash_split(subject, hold_out) if hold_out and part == "train" else part,
                subject=subject,
                image=f"{folder}/{file}",
                labels={"gender": genders[person]} if person in genders else {},
                box=box,
                licence=options.licence,
            )
    if empty:
        raise UserError(
            f"{base}: no loose_bb_train.csv, train_list.txt or train folder",
            "download one of the lists, or the pictures",
        )


def _genders(path: Path) -> dict[str, str | bool | None]:
    meaning = codes("vggface2", "gender")
    found = {}
    with (
        reading(path, ValueError),
        path.open(newline="", encoding="utf-8-sig", errors="replace") as file,
    ):
        rows = csv.reader(file, skipinitialspace=True)
        next(rows, None)
        for number, row in enumerate(rows, 1):
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:  # the comma at the end of rows
                cells.pop()
            if not cells:
                continue
            if len(cells) < 5 or cells[-1].lower() not in meaning:
                raise UserError(
                    f"{path}: row {number}: no gender m or f at its end", "download it again"
                )
            found[cells[0]] = meaning[cells[-1].lower()]
    return found


def _pictures(base: Path, part: str) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield (path below the part's folder, box or nothing)."""
    if path := first(base, *_boxes(part)):
        for table in iter_csv(path, ("NAME_ID", "X", "Y", "W", "H"), text=False):
            with reading(path, ValueError):
                sides = table[["X", "Y", "W", "H"]].to_numpy(float)
            sides[:, 2:] += sides[:, :2]
            for file, box in zip(table["NAME_ID"], sides.tolist(), strict=True):
                yield f"{file}.jpg", tuple(box)
    elif path := first(base, *_lists(part)):
        with reading(path), path.open(encoding="utf-8-sig") as lines:
            yield from ((line.strip(), ()) for line in lines if line.strip())
    elif folder := first(base, *_folders(part)):
        for person in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            for file in sorted(os.listdir(folder / person)):
                if Path(file).suffix.lower() in IMAGE_SUFFIXES:
                    yield f"{person}/{file}", ()


SOURCE = Source(
    name="vggface2",
    summary="VGGFace2: gender per identity, boxes where bb_landmark is there",
    read_rows=read_rows,
    protocols=protocols("vggface2"),
    detect=detect,
    licence="non-commercial research",
    overlaps=("maadface",),
)
