"""The static scene: Anny's head plus hair shell, hat, hair curtain and glasses, one triangle list.

Materials after those of :mod:`headmodel`: GLASSES, HAIR (shell over the scalp), CURTAIN (long
hair), HAT. What a face shows, and where the extra vertices lie, is decided per face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from data_pipeline.synth.headmodel import EYE_LEFT, EYE_RIGHT, SKIN, HeadModel, head_model

GLASSES, HAIR, CURTAIN, HAT = 7, 8, 9, 10
MATERIALS = 11
RIM, TUBE = 20, 4  # vertices around a lens, and around the wire of its rim
CURTAIN_COLUMNS, CURTAIN_ROWS = 40, 12
HEAD_AXIS = -0.03  # template y of the vertical axis hair is measured around

# Height of the hairline (template z, metres) by angle from the front, degrees.
_HAIRLINE_ANGLE = np.array([0, 22, 42, 56, 66, 74, 82, 100, 112, 135, 180.0])
_HAIRLINE_HEIGHT = np.array([
    0.806, 0.804, 0.792, 0.765, 0.735, 0.722, 0.745, 0.745, 0.715, 0.685, 0.672,
])  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Topology and template attributes shared by all faces.

    Args:
        triangles: [F, 3]; materials [F]; uv [F, 3, 2].
        texture: [V, 3] template position of every vertex, extras included.
        shell: indices of the scalp vertices the hair shell and the hat copy.
        parts: name -> slice of the vertices of head, hair, hat, curtain and glasses.
        neck: [V0] how far a head vertex follows the head's rotation, 0-1.
        curtain_anchor: scalp vertex each curtain vertex hangs from.
        landmarks: name -> head vertex indices whose mean is the point.
    """

    model: HeadModel
    triangles: np.ndarray
    materials: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    shell: np.ndarray
    parts: dict[str, slice]
    neck: np.ndarray
    curtain_anchor: np.ndarray
    landmarks: dict[str, np.ndarray]


def azimuth(points: np.ndarray) -> np.ndarray:
    """Angle from the front around the head's axis, degrees 0-180, of points [..., 3]."""
    return np.degrees(np.arctan2(np.abs(points[..., 0]), -(points[..., 1] - HEAD_AXIS)))


def hairline(points: np.ndarray, recede: float = 0.0, bangs: float = 0.0) -> np.ndarray:
    """Signed height above the hairline in centimetres of template points [..., 3].

    Args:
        recede: how far the temples have receded, 0-1.
        bangs: how far hair falls onto the forehead, 0-1.
    """
    angle = azimuth(points)
    line = np.interp(angle, _HAIRLINE_ANGLE, _HAIRLINE_HEIGHT)
    line = line + recede * 0.04 * np.exp(-(((angle - 32) / 22) ** 2)) + recede * 0.01
    forelock = np.clip((48 - angle) / 12, 0, 1)
    line = line - bangs * forelock * (line - 0.757)
    return (points[..., 2] - line) * 100


@cache
def scene() -> Scene:
    """Assemble the scene once per process."""
    model = head_model()
    count = len(model.template)
    scalp = _scalp_triangles(model)
    shell, local = np.unique(scalp, return_inverse=True)
    local = local.reshape(-1, 3)
    curtain, curtain_triangles = _curtain_template()
    glasses_triangles = _glasses_triangles()
    sizes = {
        "head": count,
        "hair": len(shell),
        "hat": len(shell),
        "curtain": len(curtain),
        "glasses": glasses_triangles.max() + 1,
    }
    starts = np.cumsum([0, *sizes.values()])
    parts = {
        name: slice(int(a), int(b))
        for name, a, b in zip(sizes, starts[:-1], starts[1:], strict=True)
    }
    pieces: list[tuple[np.ndarray, Any]] = [
        (model.triangles, model.materials),
        (local + parts["hair"].start, HAIR),
        (local + parts["hat"].start, HAT),
        (curtain_triangles + parts["curtain"].start, CURTAIN),
        (glasses_triangles + parts["glasses"].start, GLASSES),
    ]
    triangles = np.concatenate([piece for piece, _ in pieces]).astype(np.int32)
    materials = np.concatenate([np.broadcast_to(m, len(t)) for t, m in pieces]).astype(np.int32)
    uv = np.zeros((len(triangles), 3, 2), np.float32)
    uv[: len(model.uv)] = model.uv
    texture = np.concatenate(
        [
            model.template,
            model.template[shell],
            model.template[shell],
            curtain,
            np.zeros((sizes["glasses"], 3)),
        ]
    ).astype(np.float32)
    anchor = _nearest(curtain * [1, 1, 0] + [0, 0, 0.78], model.template[shell])
    return Scene(
        model, triangles, materials, uv, texture, shell, parts, _neck(model.template),
        shell[anchor], _landmarks(model),
    )  # fmt: skip


def _scalp_triangles(model: HeadModel) -> np.ndarray:
    """Skin triangles that hair, bangs or a hat may cover; the ears stay free."""
    corners = model.template[model.triangles]
    centre = corners.mean(1)
    low = hairline(corners, bangs=1.0).max(1) < -1.5
    ear = (np.abs(centre[:, 0]) > 0.071) & (centre[:, 2] < 0.748) & (centre[:, 1] > -0.09)
    inside = np.linalg.norm(centre * [1, 1, 0] - [0, HEAD_AXIS, 0], axis=1) < 0.03
    eyes = (centre[:, 2] < 0.752) & (azimuth(centre) < 50)
    keep = (model.materials == SKIN) & ~low & ~ear & ~eyes & ~(inside & (centre[:, 2] < 0.75))
    return model.triangles[keep]


def _curtain_template() -> tuple[np.ndarray, np.ndarray]:
    """A sheet around the sides and back of the head, from above the ears to the chest."""
    angle = np.radians(np.linspace(-180, 180, 2 * CURTAIN_COLUMNS + 1))
    height = np.linspace(0.80, 0.50, CURTAIN_ROWS)
    a, z = np.meshgrid(angle, height)
    droop = np.clip((0.74 - z) / 0.16, 0, 1)
    x = np.sin(a) * (0.080 + 0.008 * np.sin(np.pi * np.clip((0.80 - z) / 0.1, 0, 1)))
    y = HEAD_AXIS - np.cos(a) * (0.094 - 0.02 * droop)
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    index = np.arange(len(points)).reshape(z.shape)
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], -1)
    triangles = quads.reshape(-1, 4)[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)
    front = azimuth(points)[triangles].min(1) < 38
    return points, triangles[~front]


def _tube(rings: np.ndarray) -> np.ndarray:
    """Triangles between consecutive rings [R, TUBE] of vertex indices."""
    a, b = rings[:-1], rings[1:]
    quads = np.stack([a, np.roll(a, -1, 1), np.roll(b, -1, 1), b], -1).reshape(-1, 4)
    return quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3)


def _glasses_triangles() -> np.ndarray:
    """Two rims, a bridge and two temples, all square wires; see :func:`glasses_vertices`."""
    rim = np.arange(RIM * TUBE).reshape(RIM, TUBE)
    closed = np.concatenate([rim, rim[:1]])
    base = 2 * RIM * TUBE
    wires = [_tube(base + k * 2 * TUBE + np.arange(2 * TUBE).reshape(2, TUBE)) for k in range(3)]
    return np.concatenate([_tube(closed), _tube(closed + RIM * TUBE), *wires])


def glasses_vertices(
    left: np.ndarray, right: np.ndarray, scale: float, style: tuple[float, float, float, float]
) -> np.ndarray:
    """Vertices [G, 3] of glasses before the eyes.

    Args:
        left, right: eye centres, unposed head.
        scale: size of this head relative to the template.
        style: half width, half height and wire of the rims in metres, and their squareness 0-1.
    """
    half_width, half_height, wire, square = style
    angle = np.linspace(0, 2 * np.pi, RIM, endpoint=False)
    power = 2 / (2 + 6 * square)
    cx = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    cz = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power
    outline = np.stack([cx * half_width, np.zeros(RIM), cz * half_height], 1) * scale
    outward = np.stack([cx, np.zeros(RIM), cz], 1)
    depth = np.array([0, 1.0, 0])
    ring = np.stack([-outward - depth, outward - depth, outward + depth, -outward + depth], 1)
    ring = outline[:, None] + ring * (wire / 2 * scale)
    forward = np.array([0, -0.0285, -0.003]) * scale
    rims = [eye + forward + ring for eye in (left, right)]
    inner = np.array([half_width, 0, 0.25 * half_height]) * scale
    side = np.array([half_width, 0, 0.5 * half_height]) * scale
    mirror = np.array([-1, 1, 1])
    back = np.array([0.016, 0.105, 0.0]) * scale
    bars = [(left + forward + inner * mirror, right + forward + inner)]
    bars += [(left + forward + side, left + forward + side + back)]
    bars += [(right + forward + side * mirror, right + forward + (side + back) * mirror)]
    wires = [_bar(a, b, wire * 0.45 * scale) for a, b in bars]
    return np.concatenate([part.reshape(-1, 3) for part in (*rims, *wires)])


def _bar(start: np.ndarray, end: np.ndarray, half: float) -> np.ndarray:
    across = np.cross(end - start, [0, 0, 1.0])
    across /= np.linalg.norm(across)
    up = np.array([0, 0, 1.0])
    square = np.stack([-across - up, across - up, across + up, -across + up]) * half
    return np.stack([start + square, end + square])


def _neck(template: np.ndarray) -> np.ndarray:
    height = template[:, 2] + 0.55 * np.maximum(-template[:, 1] - 0.03, 0)
    t = np.clip((height - 0.575) / 0.06, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _nearest(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    return np.array([np.argmin(((among - p) ** 2).sum(1)) for p in points])


def _landmarks(model: HeadModel) -> dict[str, np.ndarray]:
    """Vertices of the eye centres, nose tip, chin, crown and mouth corners."""
    template = model.template
    skin = np.unique(model.triangles[model.materials == SKIN])

    def closest(x: float, y: float, z: float) -> np.ndarray:
        return skin[[np.argmin(((template[skin] - [x, y, z]) ** 2).sum(1))]]

    middle = skin[np.abs(template[skin, 0]) < 0.002]
    face = middle[(template[middle, 2] > 0.68) & (template[middle, 2] < 0.72)]
    return {
        "eye_left": np.unique(model.triangles[model.materials == EYE_LEFT]),
        "eye_right": np.unique(model.triangles[model.materials == EYE_RIGHT]),
        "nose_tip": face[[np.argmin(template[face, 1])]],
        "mouth_left": closest(0.026, -0.15, 0.664),
        "mouth_right": closest(-0.026, -0.15, 0.664),
        "chin": closest(0, -0.15, 0.634),
        "crown": skin[[np.argmax(template[skin, 2])]],
        "brow_inner_left": closest(0.014, -0.16, 0.744),
        "brow_outer_left": closest(0.045, -0.14, 0.746),
    }
