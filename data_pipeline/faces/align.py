"""Where a face goes in its crop, and cutting it out: similarity transforms of the plane.

A transform is a 2 x 3 matrix that takes photograph pixels to crop pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

# both eyes, nose, corners of the mouth as shares of the upright square around a detected box: the
# medians over 793 photographs (FairFace and public-domain portraits), made symmetrical, so that
# a face is framed alike with and without alignment
TEMPLATE = ((0.33, 0.38), (0.67, 0.38), (0.5, 0.58), (0.357, 0.73), (0.643, 0.73))


def similarity(source: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Return the turn, scale and shift that take ``source`` closest to ``target``, never a mirror.

    Closed form of the least squares problem (Umeyama 1991, eq. 40-42).

    Args:
        source: N points (x, y), not all the same.
        target: as many points.

    Raises:
        ValueError: when all source points are one.
    """
    a, b = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    spread = ((a - mean_a) ** 2).sum() / len(a)
    if spread < 1e-12:
        raise ValueError("all points are the same")
    u, d, vt = np.linalg.svd((b - mean_b).T @ (a - mean_a) / len(a))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    turn = u @ np.diag(signs) @ vt
    scale = float((d * signs).sum() / spread)
    return np.column_stack([scale * turn, mean_b - scale * turn @ mean_a])


def eyes_matrix(landmarks5: ArrayLike, size: int, margin: float) -> np.ndarray:
    """Return the transform that lays five landmarks onto the template in a crop of ``size`` px."""
    target = (np.array(TEMPLATE) + margin) / (1 + 2 * margin) * size
    return similarity(landmarks5, target)


def box_matrix(box: Sequence[float], size: int, margin: float) -> np.ndarray:
    """Return the transform of an upright square around a box: its longer side and the margins."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + 2 * margin)
    scale = size / side
    shift = [size / 2 - scale * (low + high) / 2 for low, high in ((x0, x1), (y0, y1))]
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def scale_of(matrix: np.ndarray) -> float:
    """Return crop pixels per photograph pixel."""
    return float(math.hypot(matrix[0, 0], matrix[1, 0]))


def turn_of(matrix: np.ndarray) -> float:
    """Return the degrees by which the picture is turned, clockwise positive."""
    return math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def moved(points: ArrayLike, matrix: np.ndarray) -> np.ndarray:
    """Return points [N, 2] taken through the transform."""
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def moved_box(box: Sequence[float], matrix: np.ndarray) -> tuple[float, ...]:
    """Return the upright box around a box taken through the transform."""
    x0, y0, x1, y1 = box
    corners = moved([(x0, y0), (x1, y0), (x0, y1), (x1, y1)], matrix)
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the transform back, crop to photograph."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack([back, -back @ matrix[:, 2]])


def cut(image: Image.Image, matrix: np.ndarray, size: int) -> Image.Image:
    """Return the crop of ``size`` x ``size`` px; what lies outside the photograph is black.

    Shrinking is done first and with a filter, since an affine resampling alone would alias.
    """
    x0, y0, x1, y1 = moved_box((0, 0, size, size), inverse(matrix))
    edge = 2 / min(scale_of(matrix), 1.0)  # room for the filters
    left, top = max(0, math.floor(x0 - edge)), max(0, math.floor(y0 - edge))
    right = min(image.width, math.ceil(x1 + edge))
    bottom = min(image.height, math.ceil(y1 + edge))
    if right <= left or bottom <= top:
        return Image.new(image.mode, (size, size))
    region = image.crop((left, top, right, bottom))
    shrink = min(scale_of(matrix), 1.0)
    small = tuple(max(1, round(side * shrink)) for side in region.size)
    to_region = np.array([
        [region.width / small[0], 0, left],
        [0, region.height / small[1], top],
    ])  # fmt: skip
    whole = np.vstack([matrix, [0, 0, 1]]) @ np.vstack([to_region, [0, 0, 1]])
    if small != region.size:
        region = region.resize((small[0], small[1]), Image.Resampling.LANCZOS)
    back = inverse(whole[:2])
    return region.transform(
        (size, size), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BICUBIC
    )
