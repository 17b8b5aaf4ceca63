"""``affwild2_au``: Aff-Wild2 videos with 12 action units present or absent in every frame.

``AU_Detection_Challenge/{Train_Set,Validation_Set}/<video>.txt``: a header ``AU1,AU2,...``, then
one row per frame, row j for picture ``<video>/0000j.jpg`` counted from 1; -1 is a frame (or a cell)
that was not annotated. Pictures are the distribution's ``cropped_aligned`` faces; frames without a
detected face have none and are the build's to drop. A video is a subject: who appears in several
is not published. Layout: OpenGraphAU tool/dataset_process.py; the name of the challenge's folder
differs between years and is found by its header.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.labels.action_units import parse_action_unit
from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import subfolders
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, reading
from face_mllm.errors import UserError

TRAIN, VALIDATION = "Train_Set", "Validation_Set"
_LEVELS = 3  # annotations/annotations/AU_Detection_Challenge is the deepest seen
_LIKELY = re.compile(r"annot|abaw|challenge|^au", re.IGNORECASE)


class AffWild2Options(SourceOptions):
    """Options of ``affwild2_au``.

    Args:
        images: folder of the cropped frames, relative to the root.
    """

    images: str = "cropped_aligned"


def read_rows(root: Path, options: AffWild2Options, protocol: Protocol) -> Rows:
    """Yield one record per annotated frame.

    Raises:
        UserError: no annotation folders, or a malformed file.
    """
    base = _annotations(root)
    if base is None:
        raise UserError(
            f"{root}: no {TRAIN} folder whose files begin with AU1,AU2,...",
            "give the folder that holds the annotations and the frames",
        )
    for folder, split in protocol.settings["splits"].items():
        if not (base / folder).is_dir():
            raise UserError(f"{base / folder}: no such folder", "unpack the annotations again")
        for path in sorted((base / folder).glob("*.txt")):
            yield from _video_rows(path, root.resolve() / options.images, split, options)


def _annotations(root: Path) -> Path | None:
    """The folder whose Train_Set holds action units; expressions and valence look alike."""
    places = [root]
    for _ in range(_LEVELS + 1):
        for place in places:
            first = next(iter(sorted((place / TRAIN).glob("*.txt"))), None)
            if first is not None and _header(first)[:1] == ["AU1"]:
                return place
        # never into the folders of videos: there are hundreds of them
        below = (path for place in places for path in subfolders(place))
        places = [path for path in below if _LIKELY.search(path.name)]
    return None


def _header(path: Path) -> list[str]:
    with reading(path), path.open(encoding="utf-8-sig") as file:
        return [cell.strip() for cell in file.readline().split(",")]


def _video_rows(path: Path, images: Path, split: str, options: AffWild2Options) -> Rows:
    name, video = options.name or "affwild2_au", path.stem
    for frame, units in _frames(path):
        if not units:
            yield Dropped("frame was not annotated (-1)", f"{video} frame {frame}")
            continue
        yield FaceRecord(
            id=f"{name}_{video}_{frame:05d}",
            source=name,
            split=split,
            subject=f"affwild2_au_{video}",
            image=str(images / video / f"{frame:05d}.jpg"),
            labels={"action_units": units},
            licence=options.licence,
        )


def _frames(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    words = {str(code): word for code, word in codes("affwild2_au", "action_unit").items()}
    units = [parse_action_unit(cell).label for cell in _header(path)]
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        next(rows)
        for frame, row in enumerate(rows, start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != len(units) or any(cell not in words for cell in cells):
                raise UserError(
                    f"{path}: row {frame + 1} is not {len(units)} codes 0, 1 or -1",
                    "unpack the annotations again",
                )
            found = ((unit, words[cell]) for unit, cell in zip(units, cells, strict=True))
            yield frame, {unit: word for unit, word in found if word is not None}


def detect(root: Path) -> Variant | None:
    """Recognise annotation folders of action units."""
    base = _annotations(root)
    if base is None:
        return None
    wanted = {VALIDATION: base / VALIDATION, "cropped_aligned": root / "cropped_aligned"}
    missing = tuple(name for name, path in wanted.items() if not path.is_dir())
    where = base.relative_to(root).as_posix()
    return Variant("Aff-Wild2 action-unit annotations", missing, (f"annotations in {where}",))


SOURCE = Source(
    name="affwild2_au",
    summary="Aff-Wild2: AU_Detection_Challenge/Train_Set/<video>.txt, cropped_aligned/<video>",
    read_rows=read_rows,
    options=AffWild2Options,
    protocols=protocols("affwild2_au"),
    detect=detect,
    licence="research only, agreement signed (newer ones bind trained models too)",
)
