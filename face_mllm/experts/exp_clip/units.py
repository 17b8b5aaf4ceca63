"""What is measured of a dataset: a face each, or a clip of several pictures each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.records import FaceRecord
from eval.table import Faces
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.prompts import CLASS_COUNTS, CLASSES
from face_mllm.experts.exp_clip.zero_shot import sample_frames

FRAMES = 16
ShortClips = Literal["all", "first"]
Unit = tuple[FaceRecord, list[int]]  # whom and what it shows; places of its pictures


@dataclass(frozen=True)
class Units:
    """The faces or clips of one dataset that show one of the classes.

    Args:
        root: built dataset.
        faces: its pictures by place.
        classes: what counts.
        kept: what is measured.
        left_out: how many show none of the classes, or nothing known.
    """

    root: Path
    faces: Faces
    classes: tuple[str, ...]
    kept: list[Unit]
    left_out: int


def classes_of(datasets: Sequence[Faces]) -> tuple[str, ...]:
    """The fewest of 7, 8 and 11 classes that hold every expression of the faces."""
    named = {record.labels.get("expression") for faces in datasets for record in faces.labels()}
    most = max((CLASSES.index(name) for name in named if name in CLASSES), default=0)
    return CLASSES[: next(count for count in CLASS_COUNTS if most < count)]


def read_units(
    root: Path,
    faces: Faces,
    classes: Sequence[str],
    clips: bool = False,
    short_clips: ShortClips = "all",
) -> Units:
    """Read the labels of a dataset; no picture is opened.

    Args:
        root: for errors.
        faces: of one split.
        classes: what counts.
        clips: the faces of one subject are the frames of one clip.
        short_clips: what stands for a clip of at most 16 frames.

    Raises:
        UserError: no face of these classes; a clip whose frames show several expressions.
    """
    found = list(_clips(root, faces, short_clips) if clips else _faces(faces))
    kept = [unit for unit in found if unit[0].labels.get("expression") in classes]
    if not kept:
        raise UserError(
            f"{root}: no face of split {faces.split} shows one of {', '.join(classes)}",
            "give a dataset with expression labels, or another --split",
        )
    return Units(root, faces, tuple(classes), kept, len(found) - len(kept))


def _faces(faces: Faces) -> Iterator[Unit]:
    return ((record, [place]) for place, record in enumerate(faces.labels()))


def _clips(root: Path, faces: Faces, short_clips: ShortClips) -> Iterator[Unit]:
    found: dict[tuple[str, str], list[tuple[FaceRecord, int]]] = {}
    for place, record in enumerate(faces.labels()):
        found.setdefault((record.source, record.subject), []).append((record, place))
    first = short_clips == "first"
    if first and all(len(frames) <= FRAMES for frames in found.values()):
        raise UserError(
            f"no clip has more than {FRAMES} frames, so short ones cannot be told",
            "build the frame lists with every frame, or use --short-clips all",
        )
    for (_, subject), frames in found.items():
        shown = {str(record.labels.get("expression")) for record, _ in frames}
        if len(shown) > 1:
            raise UserError(
                f"{root}: the frames of {subject!r} show {', '.join(sorted(shown))}: no clip",
                "leave out --clips, or build the data with the source video_list",
            )
        frames.sort(key=lambda frame: _frame_order(frame[0].id))
        chosen = sample_frames(len(frames), FRAMES, repeat_first=first)
        yield frames[0][0], [frames[at][1] for at in chosen]


def _frame_order(name: str) -> tuple[int, str]:
    """Frames by their number: 10 comes after 9."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (int(digits[-1]) if digits else 0), name
