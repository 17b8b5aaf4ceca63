"""From photographs to faces: find, choose, cut, and say how it was done.

:func:`find_faces` and :func:`cut_face` are what the build and a question about a new photograph
share; :func:`crop_record` applies them to a record and keeps its labels true of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.faces.align import (
    box_matrix,
    cut,
    eyes_matrix,
    inverse,
    moved,
    moved_box,
    turn_of,
)
from data_pipeline.faces.detector import Face, FaceDetector, default_detector, overlap
from data_pipeline.faces.policy import FacePolicy
from data_pipeline.faces.pose import turned_pose
from data_pipeline.records import FaceRecord
from data_pipeline.sources.base import Dropped
from face_mllm.errors import UserError

NO_FACE = "no face found"
NO_LANDMARKS = "no landmarks found in the source's box"
BOX_OUTSIDE = "the source's box lies outside the picture"
QUALITY = 95
SAME_FACE = 0.25  # overlap of a found box with the source's; conventions of boxes differ
LOOK_AROUND = 0.5  # of a source's box on every side, where landmarks are looked for


@dataclass(frozen=True)
class Crop:
    """A face cut from a photograph.

    Args:
        image: square crop.
        face: where it was, in pixels of the photograph.
        matrix: [2, 3], photograph pixels to crop pixels.
        policy: name of the policy.
    """

    image: Image.Image
    face: Face
    matrix: np.ndarray
    policy: str

    def face_box(self) -> tuple[float, ...]:
        """Return the face's box in pixels of the crop."""
        box = moved_box(self.face.box, self.matrix)
        return tuple(round(min(max(value, 0.0), float(self.image.width)), 2) for value in box)

    def as_json(self) -> dict[str, Any]:
        """Return how it was cut, for the record."""
        size = self.image.width
        corners = moved_box((0, 0, size, size), inverse(self.matrix))
        return {
            "policy": self.policy,
            "box": _rounded(corners),
            "face": _rounded(self.face.box),
            "landmarks": [_rounded(point) for point in self.face.landmarks5],
            "score": round(self.face.score, 4),
            "matrix": np.round(self.matrix, 6).tolist(),
        }


def find_faces(
    image: Image.Image, policy: FacePolicy, detector: FaceDetector | None = None
) -> list[Face]:
    """Return the faces that count, the largest first.

    Args:
        image: upright RGB photograph.
        policy: sets the least score and the least size.
        detector: the default one when None.

    Raises:
        UserError: no detector is installed.
    """
    shrink = min(1.0, policy.search / max(image.size))
    small = image
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
    found = [face.placed(1 / shrink) for face in (detector or default_detector())(small)]
    count = [f for f in found if f.score >= policy.min_score and f.shorter >= policy.min_side]
    return sorted(count, key=lambda face: (-face.area, face.box))


def cut_face(image: Image.Image, face: Face, policy: FacePolicy) -> Crop:
    """Cut one face from a photograph as the policy says."""
    if policy.align == "eyes":
        matrix = eyes_matrix(face.landmarks5, policy.size, policy.margin)
    else:
        matrix = box_matrix(face.box, policy.size, policy.margin)
    return Crop(cut(image, matrix, policy.size), face, matrix, policy.name)


def crop_record(
    record: FaceRecord,
    policy: FacePolicy,
    detector: FaceDetector | None = None,
) -> list[FaceRecord | Dropped]:
    """Turn the record of a photograph into records of faces.

    A record that carries a box is that one face. Otherwise the faces are looked for; with
    ``several: all`` they become records ``ID_f0``, ``ID_f1``, ... from the largest on, and where
    there is more than one, labels, caption and questions of the photograph are left out: nothing
    says whose they are. Labels of one face stay and follow the crop: landmarks move, and where
    the face is turned upright, so does its head pose.

    Args:
        record: its image can be a path or bytes.
        policy: with mode ``detect``.
        detector: the default one when None; it is loaded only if it is needed.

    Raises:
        UserError: no detector installed, ``several: error`` with several faces, or a picture that
            was already cropped by another policy.
    """
    if record.crop:
        return [_as_it_is(record, policy)]
    try:
        image = record.open_image()
    except UserError:
        return [Dropped("image unreadable", record.id)]
    boxed = bool(record.box) and policy.use_boxes
    if boxed:
        faces = _face_of_box(image, record.box, policy, detector)
    else:
        faces = find_faces(image, policy, detector) or NO_FACE
    if isinstance(faces, str):
        return [Dropped(faces, record.id)]
    if len(faces) > 1 and policy.several == "error":
        raise UserError(
            f"{record.id}: {len(faces)} faces in one picture, and `several: error`",
            "write `several: largest` or `several: all`, or take the picture out",
        )
    records = [record] if boxed or policy.several != "all" else _named(record, len(faces))
    found_by = "source" if boxed else (detector or default_detector()).name
    how = {"found_by": found_by, "faces_in_photograph": len(faces)}
    return [
        _face_record(each, cut_face(image, face, policy), how)
        for each, face in zip(records, faces, strict=False)  # only the largest of several
    ]


def _as_it_is(record: FaceRecord, policy: FacePolicy) -> FaceRecord:
    """A picture that is a crop already is not cropped twice."""
    if record.crop["policy"] != policy.name:
        raise UserError(
            f"{record.id}: already cropped as {record.crop['policy']}, not {policy.name}",
            "write `faces: none` for this source, or build from the photographs",
        )
    return record


def _face_of_box(
    image: Image.Image, box: Sequence[float], policy: FacePolicy, detector: FaceDetector | None
) -> list[Face] | str:
    """The face a source's box points to; a reason where it points to none."""
    x0, y0, x1, y1 = box
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    if not (0 < centre[0] < image.width and 0 < centre[1] < image.height and x0 < x1 and y0 < y1):
        return BOX_OUTSIDE
    if min(x1 - x0, y1 - y0) < policy.min_side:
        return f"face smaller than {policy.min_side} px"
    if policy.align == "none":
        return [Face((x0, y0, x1, y1))]
    wide, high = (x1 - x0) * LOOK_AROUND, (y1 - y0) * LOOK_AROUND
    left, top = max(0, round(x0 - wide)), max(0, round(y0 - high))
    right, bottom = min(image.width, round(x1 + wide)), min(image.height, round(y1 + high))
    near = find_faces(image.crop((left, top, right, bottom)), policy, detector)
    within = [face.placed(1.0, left, top) for face in near]
    shared = overlap(np.array(box, dtype=float), np.array([f.box for f in within]).reshape(-1, 4))
    if not within or shared.max() < SAME_FACE:
        return NO_LANDMARKS
    return [replace(within[int(shared.argmax())], box=(x0, y0, x1, y1))]


def _named(record: FaceRecord, faces: int) -> list[FaceRecord]:
    """A record per face; of several faces nobody knows whose the labels are."""
    if faces > 1:
        record = replace(record, labels={}, qa=(), caption="")
    return [replace(record, id=f"{record.id}_f{number}") for number in range(faces)]


def _face_record(record: FaceRecord, crop: Crop, how: dict[str, Any]) -> FaceRecord:
    return replace(
        record,
        image=encoded(crop.image),
        box=crop.face_box(),
        labels=labels_in_crop(record.labels, crop.matrix),
        crop={**crop.as_json(), **how},
    )


def labels_in_crop(labels: dict[str, Any], matrix: np.ndarray) -> dict[str, Any]:
    """Return the labels as they hold in the crop: landmarks moved, head pose turned with it."""
    changed = dict(labels)
    points = np.array(changed.pop("landmarks", None), dtype=object)
    if points.ndim == 2 and points.shape[1] == 2:  # in another shape nobody knows what to move
        changed["landmarks"] = np.round(moved(points.astype(float), matrix), 2).tolist()
    if "head_pose" in labels and abs(turn_of(matrix)) > 1e-9:
        changed.pop("head_pose")
        if pose := turned_pose(labels["head_pose"], turn_of(matrix)):
            changed["head_pose"] = pose
    return changed


def encoded(image: Image.Image) -> bytes:
    """Return the bytes that go into the dataset."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 2) for value in values]
