"""``utkface``: UTKFace, age and gender in the file name (Zhang et al. 2017).

``[age]_[gender]_[race]_[time].jpg``, aligned copies ``.jpg.chip.jpg``. A few names lack a field or
a dot, and which field is missing differs from name to name, so they are dropped and counted, never
guessed. There is no identity key: every picture is its own subject. Race is left out.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import first, home
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, hash_split
from face_mllm.errors import UserError

ALIGNED = ("UTKFace", "utkface_aligned_cropped/UTKFace", "crop_part1")
RAW = ("part1", "part2", "part3")
NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d{17}\.jpg(\.chip\.jpg)?", re.IGNORECASE)
PICTURE = re.compile(r"\d.*jpg", re.IGNORECASE)  # well-formed or not, a face; no landmark list
OLDEST = 116


def detect(root: Path) -> Variant | None:
    """Recognise UTKFace by its folders or by names of its shape."""
    folders = _folders(root)
    if not folders:
        return None
    raw = folders[0].name in RAW
    missing = tuple(part for part in RAW if raw and not (folders[0].parent / part).is_dir())
    return Variant("photographs (part1-3)" if raw else "aligned and cropped", missing)


def _flat(root: Path) -> bool:
    if not root.is_dir():
        return False
    with os.scandir(root) as entries:
        return any(NAME.fullmatch(entry.name) for entry in islice(entries, 200))


def _folders(root: Path) -> list[Path]:
    """Return where the faces are; aligned ones win over photographs, or they would come twice."""
    if _flat(root):
        return [root]
    base = home(root, *ALIGNED, *RAW)
    if base is None:
        return []
    aligned = first(base, *ALIGNED)
    return [aligned] if aligned else [base / part for part in RAW if (base / part).is_dir()]


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield a record per face whose name is well formed.

    Raises:
        UserError: when there is no folder of such names.
    """
    folders = _folders(root)
    if not folders:
        raise UserError(
            f"{root}: not UTKFace: no names such as 26_0_1_20170116184028385.jpg",
            f"give the folder that holds {ALIGNED[0]} or {RAW[0]}",
        )
    name, seen = options.name or "utkface", set[str]()
    for folder in folders:
        for file in sorted(os.listdir(folder)):
            if not PICTURE.fullmatch(file):
                continue
            where, stem = f"{folder.name}/{file}", file.split(".", 1)[0]
            if stem in seen:
                yield Dropped("same name in another folder", where)
                continue
            seen.add(stem)
            yield _record(folder, file, where, name, options, protocol)


def _record(
    folder: Path, file: str, where: str, name: str, options: SourceOptions, protocol: Protocol
) -> FaceRecord | Dropped:
    fields = NAME.fullmatch(file)
    if fields is None or int(fields[1]) > OLDEST:
        return Dropped("malformed name", where)
    age = int(fields[1])
    low, high = protocol.settings.get("ages", (0, OLDEST))
    if not low <= age <= high:
        return Dropped(f"age outside {low}-{high}", where)
    key = f"{name}_{file.split('.', 1)[0]}"
    return FaceRecord(
        id=key,
        source=name,
        split=hash_split(key, protocol.settings["split"]),
        subject=key,
        image=f"{folder.resolve()}/{file}",
        labels={"age": age, "gender": codes("utkface", "gender")[int(fields[2])]},
        licence=options.licence,
    )


SOURCE = Source(
    name="utkface",
    summary="UTKFace: age and gender from the file names, aligned or photographs",
    read_rows=read_rows,
    protocols=protocols("utkface"),
    detect=detect,
    licence="non-commercial research",
)
