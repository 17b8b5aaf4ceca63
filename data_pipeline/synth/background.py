"""What lies behind a head and what the camera does to the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from data_pipeline.synth.spec import FaceSpec, generator


def background(spec: FaceSpec, cells: int = 32) -> np.ndarray:
    """A small linear picture [cells, cells, 3] the shader stretches behind the head."""
    r = generator(spec.seed, spec.index, 2)
    y, x = np.mgrid[0:cells, 0:cells] / (cells - 1)
    first, second = np.array(spec.background_colours)
    if spec.background_kind == "gradient":
        angle = r.uniform(0, 2 * np.pi)
        amount = 0.5 + 0.7 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    elif spec.background_kind == "noise":
        amount = _stretched(r.random((6, 6)), cells)
    else:
        amount = np.zeros_like(x)
        for _ in range(6):
            cx, cy, rx, ry = r.uniform([0, 0, 0.05, 0.05], [1, 1, 0.35, 0.6])
            amount = np.maximum(amount, (np.abs(x - cx) < rx) & (np.abs(y - cy) < ry))
    amount = np.clip(amount, 0, 1)[..., None]
    return (first * (1 - amount) + second * amount).astype(np.float32)


def _stretched(small: np.ndarray, cells: int) -> np.ndarray:
    """Bilinear enlargement of a small square field."""
    at = np.linspace(0, len(small) - 1.001, cells)
    low, part = at.astype(int), at - at.astype(int)
    rows = small[low] * (1 - part[:, None]) + small[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur; below a third of a pixel the picture stays as it is."""
    if radius < 0.3:
        return image
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
