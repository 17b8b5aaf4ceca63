"""Poses a face: head, hair, hat and glasses before the camera and the light, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.synth.actions import geometry_amounts
from data_pipeline.synth.scene import (
    CURTAIN,
    GLASSES,
    HAIR,
    HAT,
    MATERIALS,
    azimuth,
    glasses_vertices,
    hairline,
    scene,
)
from data_pipeline.synth.spec import FaceSpec

SHADOW_SIZE = 256
SHADOW_SPAN = 0.36  # metres of the head that the shadow map covers
FACE_SPAN = 0.205  # metres from the frame's top to its bottom for a head of the template's size
TEMPLATE_FACE = 0.094  # metres from the eyes to the chin on the template
Normals = Callable[[np.ndarray], np.ndarray]  # points [V, 3] -> vertex normals [V, 3]


def pose_matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rotation of the head in world axes (x image right, y away from the camera, z up).

    Angles in degrees, 300W-LP / Hopenet convention: yaw > 0 turns the face to the image's left,
    pitch > 0 looks up, roll > 0 turns it clockwise in the image.
    """
    a, b, c = np.radians([yaw, pitch, roll])
    about_z = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    return about_x @ about_z @ about_y


@dataclass(frozen=True)
class PosedFace:
    """Geometry of one face.

    Args:
        points: [V, 3] world metres, extras included.
        screen: [V, 3] position in the frame (0-1, 0-1) and distance to the camera.
        rotation: [3, 3] head to world.
        in_light: [V, 3] position in the shadow map and depth along the light.
        landmarks: name -> (x, y) in the frame, 0-1.
    """

    points: np.ndarray
    screen: np.ndarray
    rotation: np.ndarray
    in_light: np.ndarray
    landmarks: dict[str, np.ndarray]


def _smooth(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def light_direction(spec: FaceSpec) -> np.ndarray:
    """Unit vector towards the key light in world axes; azimuth > 0 is on the image's right."""
    a, e = np.radians([spec.light_azimuth, spec.light_elevation])
    return np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])


def head_vertices(specs: Sequence[FaceSpec]) -> tuple[np.ndarray, np.ndarray]:
    """Unposed head vertices [N, V0, 3] with and without the facial actions."""
    model = scene().model
    still, moved = [], []
    for spec in specs:
        phenotype = {
            "gender": spec.gender,
            "age": spec.anny_age,
            "weight": spec.weight,
            "african": spec.african,
            "asian": spec.asian,
            "caucasian": spec.caucasian,
        }
        still.append(model.coefficients(phenotype, {}, spec.local))
        moved.append(model.coefficients(phenotype, geometry_amounts(spec.actions), spec.local))
    both = model.vertices(np.stack(still + moved))
    return both[len(specs) :], both[: len(specs)]


def _shell(spec: FaceSpec, template: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Thickness and cut-out mask (centimetres) of the hair shell at scalp template points."""
    mask = hairline(template, spec.recede, spec.bangs)
    if spec.hair_style == "buzz" or spec.hat:  # a cap presses the hair down
        return np.full(len(template), 0.0018 * scale), mask
    volume = spec.hair_volume * (1 + 1.2 * spec.curl)
    crown = 0.55 + 0.45 * _smooth(0.78, 0.85, template[:, 2])
    thickness = 0.002 + volume * crown * _smooth(0.0, 2.2, mask + 0.3)
    fringe = spec.bangs * np.clip((50 - azimuth(template)) / 15, 0, 1)
    return (thickness + 0.005 * fringe) * scale, mask


def _hat(template: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A knitted cap: its brim runs level around the head, above the brows and over the ears."""
    brim = 0.768 - 0.022 * _smooth(40, 90, azimuth(template))
    mask = (template[:, 2] - brim) * 100
    band = 0.004 * (mask < 2.6)
    return (0.009 + 0.010 * _smooth(0.80, 0.85, template[:, 2]) + band) * scale, mask


def _curtain(spec: FaceSpec, template: np.ndarray) -> np.ndarray:
    """Cut-out mask (centimetres) of long hair: ends at its length, opens at the face."""
    end = (template[:, 2] - spec.hair_length) * 100
    front = (azimuth(template) - 58) / 57.3 * 9
    under_hat = (0.762 - template[:, 2]) * 100 if spec.hat else np.inf
    return np.minimum(np.minimum(end, front), under_hat)


def pose(specs: Sequence[FaceSpec], normals: Normals) -> list[PosedFace]:
    """Place heads, hair and glasses before the camera and the light.

    Args:
        normals: gives the vertex normals of all vertices of the scene.
    """
    moved, still = head_vertices(specs)
    rows = zip(specs, moved, still, strict=True)
    return [_pose_one(spec, a, b, normals) for spec, a, b in rows]


def _pose_one(spec: FaceSpec, moved: np.ndarray, still: np.ndarray, normals: Normals) -> PosedFace:
    s = scene()
    marks = s.landmarks
    eyes = (still[marks["eye_left"]].mean(0) + still[marks["eye_right"]].mean(0)) / 2
    scale = float(np.linalg.norm(eyes - still[marks["chin"]].mean(0)) / TEMPLATE_FACE)
    pivot = eyes + np.array([0, 0.10, -0.075]) * scale
    unposed = _with_extras(spec, moved, still, scale, normals)
    rotation = pose_matrix(spec.yaw, spec.pitch, spec.roll)
    follow = np.ones(len(unposed), np.float32)
    follow[s.parts["head"]] = s.neck
    turned = (unposed - pivot) @ rotation.T
    points = (unposed - pivot) * (1 - follow[:, None]) + turned * follow[:, None]
    face = (eyes + np.array([0, 0, -0.025 * scale]) - pivot) @ rotation.T
    screen = _project(spec, points, face, scale)
    names = {name: screen[index].mean(0)[:2] for name, index in marks.items()}
    return PosedFace(points, screen, rotation, _to_light(spec, points - face), names)


def _with_extras(
    spec: FaceSpec, moved: np.ndarray, still: np.ndarray, scale: float, normals: Normals
) -> np.ndarray:
    """Head, hair shell, hat, curtain and glasses [V, 3] before posing."""
    s = scene()
    points = np.zeros((len(s.texture), 3), np.float32)
    points[s.parts["head"]] = moved
    template = s.model.template[s.shell]
    outwards = normals(points)[s.shell]
    for part, (thickness, _) in (
        ("hair", _shell(spec, template, scale)),
        ("hat", _hat(template, scale)),
    ):
        points[s.parts[part]] = moved[s.shell] + outwards * thickness[:, None]
    hung = s.texture[s.parts["curtain"]] - s.model.template[s.curtain_anchor]
    spread = 1 + 0.15 * spec.curl
    wide = hung * np.array([scale * spread, scale * spread, scale])
    points[s.parts["curtain"]] = still[s.curtain_anchor] + wide
    points[s.parts["glasses"]] = glasses_vertices(
        still[s.landmarks["eye_left"]].mean(0),
        still[s.landmarks["eye_right"]].mean(0),
        scale,
        spec.glasses_style,
    )
    return points


def _project(spec: FaceSpec, points: np.ndarray, face: np.ndarray, scale: float) -> np.ndarray:
    """Perspective picture coordinates (0-1, down) and distance of world points."""
    span = FACE_SPAN * scale * spec.framing
    relative = points - face
    distance = spec.distance * scale + relative[:, 1]
    zoom = spec.distance * scale / span / np.maximum(distance, 0.02)
    x = 0.5 + spec.shift_x + relative[:, 0] * zoom
    y = 0.5 + spec.shift_y - relative[:, 2] * zoom
    return np.stack([x, y, distance], axis=-1).astype(np.float32)


def _to_light(spec: FaceSpec, points: np.ndarray) -> np.ndarray:
    """Orthographic coordinates seen from the key light: pixel, pixel, depth."""
    forward = -light_direction(spec)
    right = np.cross(np.array([0, 0, 1.0]), -forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pixels = SHADOW_SIZE / SHADOW_SPAN
    x = SHADOW_SIZE / 2 + points @ right * pixels
    y = SHADOW_SIZE / 2 + points @ down * pixels
    depth = 100.0 + points @ forward
    return np.stack([x, y, depth], axis=-1).astype(np.float32)


def visibility(spec: FaceSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cut-out value of every vertex and the materials this face shows."""
    s = scene()
    mask = np.ones(len(s.texture), np.float32)
    template = s.model.template[s.shell]
    mask[s.parts["hair"]] = _shell(spec, template, 1.0)[1]
    mask[s.parts["hat"]] = _hat(template, 1.0)[1] * 3
    mask[s.parts["curtain"]] = _curtain(spec, s.texture[s.parts["curtain"]])
    shown = np.ones(MATERIALS, np.int32)
    shown[GLASSES] = spec.glasses
    shown[HAIR] = spec.hair_style != "bald" and not (spec.hat and spec.hair_style == "buzz")
    shown[CURTAIN] = spec.hair_style == "long"
    shown[HAT] = spec.hat
    return mask, shown
