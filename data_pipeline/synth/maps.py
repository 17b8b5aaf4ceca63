"""Planar maps over the front of the template face: wrinkles, brows, beard, blush, spots.

A map spans x (columns) and z (rows) of the template and is sampled per pixel by the shader, so
what is painted moves with the mesh. Wrinkles deepen with age and with the facial action that
folds the skin there, never with a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from data_pipeline.synth.spec import FaceSpec

ROWS, COLUMNS = 344, 224
X = np.linspace(-0.085, 0.085, COLUMNS, endpoint=False) + 0.085 / COLUMNS
Z = np.linspace(0.60, 0.86, ROWS, endpoint=False) + 0.13 / ROWS
GRID_X, GRID_Z = np.meshgrid(X, Z)
FOLDS = (
    "forehead_inner", "forehead_outer", "glabella", "crow", "under_eye", "cheek_left",
    "cheek_right", "nose", "chin", "corner_left", "corner_right", "marionette", "texture",
)  # fmt: skip


def _noise(seed: int, scale: float) -> np.ndarray:
    """Smooth noise of about unit variance; ``scale`` is its grain in map cells."""
    from scipy.ndimage import gaussian_filter

    raw = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    smooth = gaussian_filter(raw, scale)
    return smooth / smooth.std()


def _segment(points: list[tuple[float, float]], width: float) -> np.ndarray:
    """Soft line along a polyline, 1 in the middle and fading at its ends."""
    best = np.zeros_like(GRID_X)
    path = np.array(points)
    steps = len(path) - 1
    for k in range(steps):
        a, b = path[k], path[k + 1]
        ab = b - a
        t = ((GRID_X - a[0]) * ab[0] + (GRID_Z - a[1]) * ab[1]) / (ab @ ab)
        t = np.clip(t, 0, 1)
        d2 = (GRID_X - a[0] - t * ab[0]) ** 2 + (GRID_Z - a[1] - t * ab[1]) ** 2
        along = (k + t) / steps
        fade = np.clip(np.minimum(along, 1 - along) * 6 + 0.25, 0, 1)
        best = np.maximum(best, fade * np.exp(-d2 / width**2))
    return best


def _both(points: list[tuple[float, float]], width: float) -> np.ndarray:
    mirrored = [(-x, z) for x, z in points]
    return _segment(points, width) + _segment(mirrored, width)


def _forehead() -> np.ndarray:
    total = np.zeros_like(GRID_X)
    for k, z in enumerate((0.762, 0.770, 0.778, 0.787)):
        wave = 0.0012 * np.cos(GRID_X * 130 + k) + 0.004 * (1 - (GRID_X / 0.05) ** 2) * 0.3
        total += np.exp(-(((GRID_Z - z - wave) / 0.0013) ** 2))
    return total * np.clip((0.052 - np.abs(GRID_X)) / 0.012, 0, 1)


def _valleys() -> dict[str, np.ndarray]:
    """Depth of each fold's valleys, 0-1."""
    inner = np.clip((0.030 - np.abs(GRID_X)) / 0.012, 0, 1)
    cheek = [(0.0155, 0.7), (0.0225, 0.69), (0.029, 0.677), (0.033, 0.662)]
    corner = [(0.033, 0.672), (0.0355, 0.664), (0.034, 0.656)]
    crow = [[(0.049, 0.729), (0.066, z)] for z in (0.741, 0.733, 0.725, 0.717)]
    bag = [(0.017, 0.722), (0.026, 0.7145), (0.036, 0.7145), (0.046, 0.721)]
    bunny = [[(0.003, 0.731 - k), (0.011, 0.722 - k)] for k in (0, 0.0055, 0.011)]
    chin = np.clip(_noise(3, 3.0), 0, 2) / 2
    chin = chin * np.exp(-((GRID_X / 0.014) ** 2) - ((GRID_Z - 0.643) / 0.010) ** 2)
    return {
        "forehead_inner": _forehead() * inner,
        "forehead_outer": _forehead() * (1 - inner),
        "glabella": _both([(0.0048, 0.757), (0.0055, 0.746), (0.0075, 0.736)], 0.0014)
        + 0.5 * _both([(0.001, 0.752), (0.0015, 0.738)], 0.0012),
        "crow": np.sum([_both(line, 0.0012) for line in crow], axis=0),
        "under_eye": _both(bag, 0.0018) + 0.6 * _both([(x, z - 0.004) for x, z in bag], 0.0016),
        "cheek_left": _segment(cheek, 0.0022),
        "cheek_right": _segment([(-x, z) for x, z in cheek], 0.0022),
        "nose": np.sum([_both(line, 0.0012) for line in bunny], axis=0)
        + _segment([(-0.009, 0.733), (0.009, 0.733)], 0.0013),
        "chin": chin,
        "corner_left": _segment(corner, 0.0018),
        "corner_right": _segment([(-x, z) for x, z in corner], 0.0018),
        "marionette": _both([(0.028, 0.658), (0.031, 0.648), (0.0315, 0.636)], 0.0018),
        "texture": 0.35 * np.abs(_noise(11, 1.2)) + 0.25 * _noise(12, 3.0),
    }


@cache
def _fold_basis() -> np.ndarray:
    """[folds, rows * columns * 3]: slope along x, slope along z, valley; depth 1 mm."""
    basis = []
    step_x, step_z = X[1] - X[0], Z[1] - Z[0]
    for name in FOLDS:
        valley = _valley_cache()[name]
        along_z, along_x = np.gradient(-0.001 * valley, step_z, step_x)
        basis.append(np.stack([along_x, along_z, np.clip(valley, 0, 1)], -1).ravel())
    return np.stack(basis).astype(np.float32)


@cache
def _valley_cache() -> dict[str, np.ndarray]:
    return _valleys()


def fold_depths(spec: FaceSpec) -> dict[str, float]:
    """Depth of each fold in millimetres, from the wrinkles of age and from facial actions."""
    act: Mapping[str, float] = spec.actions
    old = spec.wrinkles

    def side(name: str) -> float:
        return 0.5 * (act.get(f"{name}Left", 0.0) + act.get(f"{name}Right", 0.0))

    def cheek(which: str) -> float:
        smile, up = act.get(f"mouthSmile{which}", 0.0), act.get(f"mouthUpperUp{which}", 0.0)
        return max(0.8 * smile, 0.8 * up, 0.6 * side("noseSneer")) + 0.7 * old

    def corner(which: str) -> float:
        dimple = act.get(f"mouthDimple{which}", 0.0)
        return 1.6 * dimple + 0.3 * act.get(f"mouthSmile{which}", 0.0) + 0.2 * old

    return {
        "forehead_inner": 0.8 * act.get("browInnerUp", 0.0) + 0.5 * old,
        "forehead_outer": 0.8 * side("browOuterUp") + 0.5 * old,
        "glabella": 1.3 * side("browDown") + 0.35 * old,
        "crow": 1.3 * side("cheekSquint") + 0.6 * old,
        "under_eye": 1.0 * side("cheekSquint") + 0.5 * side("eyeSquint") + 0.8 * old,
        "cheek_left": cheek("Left"),
        "cheek_right": cheek("Right"),
        "nose": 1.1 * side("noseSneer"),
        "chin": 2.4 * act.get("mouthShrugLower", 0.0),
        "corner_left": corner("Left"),
        "corner_right": corner("Right"),
        "marionette": 0.6 * side("mouthFrown") + 0.8 * old,
        "texture": 0.10 + 0.22 * old,
    }


def relief(spec: FaceSpec) -> np.ndarray:
    """Bump map [rows, columns, 4]: slope along x and z, valley darkening, blotches."""
    depths = fold_depths(spec)
    amounts = np.array([depths[name] for name in FOLDS], dtype=np.float32)
    out = np.zeros((ROWS, COLUMNS, 4), np.float32)
    out[..., :3] = (amounts @ _fold_basis()).reshape(ROWS, COLUMNS, 3)
    out[..., 2] = np.clip(out[..., 2], 0, 1)
    out[..., 3] = np.roll(_blotches(), (37 * spec.index % ROWS, 53 * spec.index % COLUMNS), (0, 1))
    return out


@cache
def _blotches() -> np.ndarray:
    return (0.7 * _noise(41, 5.0) + 0.5 * _noise(42, 1.5)).astype(np.float32)


@cache
def _masks() -> dict[str, np.ndarray]:
    """Fixed masks: where beard, moustache and blush lie, and patterns of strokes and spots."""
    x = np.abs(GRID_X)
    jaw = np.interp(
        x, [0, 0.018, 0.03, 0.045, 0.06, 0.085], [0.654, 0.654, 0.668, 0.682, 0.70, 0.725]
    )
    beard = np.clip((jaw + 0.0012 * _noise(31, 1.5) - GRID_Z) / 0.005, 0, 1)
    patch = np.exp(-((x / 0.007) ** 2) - ((GRID_Z - 0.6525) / 0.003) ** 2)
    side = np.clip((x - 0.029) / 0.004, 0, 1) * np.clip((0.678 - GRID_Z) / 0.006, 0, 1)
    lip = np.interp(x, [0, 0.012, 0.03, 0.036], [0.6855, 0.688, 0.672, 0.662])
    moustache = np.clip((lip + 0.001 - GRID_Z) / 0.003, 0, 1)
    moustache *= np.clip(
        (GRID_Z - np.interp(x, [0, 0.02, 0.036], [0.672, 0.669, 0.655])) / 0.002, 0, 1
    )
    moustache *= np.clip((0.037 - x) / 0.004, 0, 1)
    blush = np.exp(-(((x - 0.043) / 0.014) ** 2) - ((GRID_Z - 0.695) / 0.012) ** 2)
    spots = np.clip(_noise(21, 1.3) - 1.2, 0, 1) * np.exp(-(((GRID_Z - 0.703) / 0.022) ** 2))
    blotches = np.clip(_noise(22, 2.6) - 1.5, 0, 1)
    return {
        "beard": np.maximum(np.maximum(beard, patch * 0.8), side),
        "moustache": moustache,
        "strokes": 0.5 + 0.5 * np.tanh(_noise(23, 0.7)),
        "blush": blush,
        "freckles": np.clip(spots * 4, 0, 1),
        "age_spots": np.clip(blotches * 1.5, 0, 1),
        "sockets": np.exp(-(((x - 0.031) / 0.02) ** 2) - ((GRID_Z - 0.722) / 0.009) ** 2),
    }


def _brows(spec: FaceSpec) -> np.ndarray:
    """Opacity of the brows [rows, columns]."""
    x = np.abs(GRID_X)
    t = (x - 0.0105) / 0.0425
    inside = np.clip(t * 8 + 0.3, 0, 1) * np.clip((1 - t) * 8, 0, 1)
    curve = 1 - ((np.clip(t, 0, 1) - 0.62) / 0.62) ** 2
    middle = 0.7415 + spec.brow_height + 0.001 * t + spec.brow_arch * curve
    half = spec.brow_thickness * (1 - 0.55 * np.clip(t, 0, 1) ** 1.4)
    edge = 1 - np.clip((np.abs(GRID_Z - middle) - half) / 0.0012 + 0.5, 0, 1)
    strokes = 0.7 + 0.3 * _masks()["strokes"]
    return spec.brow_density * inside * edge * strokes


def paint(spec: FaceSpec) -> np.ndarray:
    """Colour map [rows, columns, 4]: opacity of brows, blush, spots and shade, beard."""
    masks = _masks()
    out = np.zeros((ROWS, COLUMNS, 4), np.float32)
    out[..., 0] = _brows(spec)
    out[..., 1] = spec.blush * masks["blush"]
    shade = 0.75 * spec.freckles * masks["freckles"] + 0.35 * spec.age_spots * masks["age_spots"]
    out[..., 2] = np.clip(shade + spec.eye_shade * masks["sockets"], 0, 1)
    strokes = 0.62 + 0.38 * masks["strokes"]
    hair = np.maximum(spec.beard * masks["beard"], spec.moustache * masks["moustache"])
    out[..., 3] = np.clip(hair * strokes * 1.1, 0, 1)
    return out
