"""``disfa``: spontaneous expressions of 27 people, 12 action units graded 0-5 in every frame.

``ActionUnit_Labels/SN001/SN001_au1.txt`` holds ``frame,grade`` with frames counted from 1. The
distribution has videos; frames are decoded by the user into ``<images>/SN001/<number>.png``. Label
frame 1 is the first decoded frame, so what its file is called depends on the tool:
``frame_offset`` (file number minus label number) has no default and is checked against the files.
Both cameras show the same frames; one of them is read.
Layout: CVI-SZU/ME-GraphAU tool/DISFA_image_label_process.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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
    unit_files,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant
from face_mllm.errors import UserError

LABELS = "ActionUnit_Labels"
_PERSON = re.compile(r"SN\d{3}")
_PEOPLE = 27
_POOR = "SN029: the landmarks of frames 4330-4536 are poor; crop by a detector, not by them"
_DECODE = (
    "decode the videos, for one with `ffmpeg -i LeftVideoSN001_comp.avi -start_number 0 "
    "Frames/SN001/%d.png`, and set `frame_offset: -1`"
)


class DisfaOptions(SourceOptions):
    """Options of ``disfa``.

    Args:
        frame_offset: number in the name of a picture minus its label frame: -1 for 0.png, 1.png,
            ...; 0 for 0001.png, 0002.png, ... as ffmpeg counts by default.
        images: folder of the decoded frames, relative to the dataset; found when there is one.
    """

    frame_offset: int
    images: str = ""


def read_rows(root: Path, options: DisfaOptions, protocol: Protocol) -> Rows:
    """Yield one record per labelled frame that was decoded.

    Raises:
        UserError: no labels, a missing or malformed label file, no or several folders of frames,
            or an offset that does not fit the numbers of the pictures.
    """
    base = need_base(root, LABELS)
    frames = _frame_folder(base, options)
    for person in _people(base / LABELS):
        split = fold_split(protocol, person.name)
        if split is None:
            yield Dropped(f"person is in no part of {protocol.name}", person.name)
        else:
            yield from _person_rows(person, frames / person.name, split, options, protocol)


def _people(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if _PERSON.fullmatch(path.name)]


def _person_rows(
    labels: Path, frames: Path, split: str, options: DisfaOptions, protocol: Protocol
) -> Rows:
    person, units = labels.name, protocol.settings["units"]
    files = unit_files(labels, rf"{person}_au0*(\d+)\.txt", units)
    coded = {_number(frame, labels): grades for frame, grades in merge_units(files, ",")}
    images = numbered_images(frames)
    _check_offset(frames, images, coded, options.frame_offset)
    name = options.name or "disfa"
    for number, grades in sorted(coded.items()):
        where = f"{person} frame {number}"
        image = images.pop(number + options.frame_offset, None)
        if image is None:
            yield Dropped("no picture of the frame", where)
        elif len(grades) < len(units):
            yield Dropped("frame is not in the file of every unit", where)
        else:
            yield FaceRecord(
                id=f"{name}_{person}_{number:04d}",
                source=name,
                split=split,
                subject=f"disfa_{person}",
                image=str(image),
                labels={"action_units": grades},
                licence=options.licence,
            )
    yield from (
        Dropped("picture beyond the labelled frames", str(path)) for path in images.values()
    )


def _number(frame: str, labels: Path) -> int:
    try:
        return int(frame)
    except ValueError as error:
        raise UserError(f"{labels}: {frame!r} is no frame number", AGAIN) from error


def _check_offset(folder: Path, images: dict[int, Path], coded: Iterable[int], offset: int) -> None:
    """Refuse an offset that pairs the pictures with the wrong labels.

    A video may decode to a frame more than is labelled, and pictures may be missing; a wrong
    offset shows as pictures before the first label, or behind the last while the first lacks one.
    """
    numbers = sorted(coded)
    if not images or not numbers:
        return
    first, last = numbers[0] + offset, numbers[-1] + offset
    if min(images) < first or (max(images) > last and first not in images):
        raise UserError(
            f"{folder}: {len(images)} pictures numbered {min(images)} to {max(images)}, but with "
            f"frame_offset {offset} the {len(numbers)} label frames are {first} to {last}",
            f"set `frame_offset: {min(images) - numbers[0]}` if the first picture is label frame "
            f"{numbers[0]}",
        )


def _frame_folder(base: Path, options: DisfaOptions) -> Path:
    if options.images:
        if not (base / options.images).is_dir():
            raise UserError(f"{base / options.images}: no such folder", "check `images`")
        return base / options.images
    found = _frame_folders(base)
    if not found:
        raise UserError(f"{base}: no folder with decoded frames (SN001/0.png)", _DECODE)
    if len(found) > 1:
        names = ", ".join(path.relative_to(base).as_posix() for path in found)
        raise UserError(
            f"{base}: frames in {names}; both cameras show the same frames",
            "choose one with `images: ...`",
        )
    return found[0]


def _frame_folders(base: Path) -> list[Path]:
    """Folders one or two levels down whose SN... folders hold pictures."""
    places = [path for path in subfolders(base) if path.name != LABELS]
    places += [below for path in places for below in subfolders(path)]
    return [path for path in places if any(numbered_images(p) for p in _people(path)[:1])]


def detect(root: Path) -> Variant | None:
    """Recognise the label folders and say how the decoded frames are numbered."""
    base = find_base(root, LABELS)
    people = _people(base / LABELS) if base else []
    if base is None or not people:
        return None
    missing = [f"{LABELS}: {len(people)} of {_PEOPLE} people"] if len(people) < _PEOPLE else []
    notes = [_POOR] if any(path.name == "SN029" for path in people) else []
    frames = _frame_folders(base)
    for folder in frames:
        first = min(numbered_images(_people(folder)[0]))
        notes.append(
            f"{folder.relative_to(base)}: first picture {first} (frame_offset {first - 1})"
        )
    if not frames:
        missing.append("decoded frames (SN001/0.png)")
    return Variant("DISFA label files", tuple(missing), tuple(notes))


SOURCE = Source(
    name="disfa",
    summary="DISFA: ActionUnit_Labels/SN001/SN001_au1.txt and decoded frames (`frame_offset:`)",
    read_rows=read_rows,
    options=DisfaOptions,
    protocols=protocols("disfa"),
    detect=detect,
    licence="research only, agreement signed",
    overlaps=("disfaplus",),
)
