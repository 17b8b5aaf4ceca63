"""Renders faces: numpy poses the linear head, Warp kernels rasterise and shade it on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.synth import maps
from data_pipeline.synth.actions import geometry_amounts
from data_pipeline.synth.sample import FaceSpec, generator, sample_face
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
from face_mllm.errors import UserError

SHADOW_SIZE = 256
SHADOW_SPAN = 0.36  # metres of the head that the shadow map covers
FACE_SPAN = 0.205  # metres from the frame's top to its bottom for a head of the template's size
TEMPLATE_FACE = 0.094  # metres from the eyes to the chin on the template


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


class FaceRenderer:
    """Renders batches of :class:`FaceSpec`.

    Args:
        size: side of the square pictures in pixels.
        supersample: samples per pixel side.

    Raises:
        UserError: the extra ``synth`` is not installed, or the size is not sensible.
    """

    def __init__(self, size: int = 224, supersample: int = 2) -> None:
        if not 16 <= size <= 1024:
            raise UserError(f"picture size {size} is not between 16 and 1024", "try 224")
        self.scene = scene()  # first, so that a missing anny is reported before a missing warp
        import warp as wp

        from data_pipeline.synth import raster, shading

        self._wp, self._raster, self._shading = wp, raster, shading
        self.size, self.factor = size, supersample
        self._static = self._upload()

    def warm_up(self) -> None:
        """Compile and cache the kernels, so that worker processes only load them."""
        self.render([sample_face(0, 0)])

    def _array(self, values: np.ndarray, dtype: Any) -> Any:
        return self._wp.array(np.ascontiguousarray(values), dtype=dtype, device="cpu")

    def _upload(self) -> dict[str, Any]:
        wp, model = self._wp, self.scene.model
        eyes = {
            side: model.template[self.scene.landmarks[f"eye_{side}"]].mean(0)
            for side in ("left", "right")
        }
        return {
            "triangles": self._array(self.scene.triangles, wp.vec3i),
            "materials": self._array(self.scene.materials, wp.int32),
            "texture": self._array(self.scene.texture, wp.vec3),
            "uv": self._array(self.scene.uv, wp.vec2),
            "occlusion": self._array(self._occlusion(), wp.float32),
            "lips": self._array(model.lips, wp.float32),
            "lips_box": wp.vec4(*map(float, model.lips_box)),
            "eye_left": wp.vec3(*map(float, eyes["left"])),
            "eye_right": wp.vec3(*map(float, eyes["right"])),
        }

    def _occlusion(self) -> np.ndarray:
        """Ambient light that reaches each vertex; hair and hats lie in the open."""
        sky = np.ones(len(self.scene.texture), np.float32)
        sky[self.scene.parts["head"]] = 0.12 + 0.88 * self.scene.model.occlusion
        return sky

    def pose(self, specs: Sequence[FaceSpec]) -> list[PosedFace]:
        """Place heads, hair and glasses before the camera and the light."""
        moved, still = head_vertices(specs)
        rows = zip(specs, moved, still, strict=True)
        return [self._pose_one(spec, a, b) for spec, a, b in rows]

    def _normals(self, points: np.ndarray) -> np.ndarray:
        """Vertex normals [V, 3] of one point set."""
        wp = self._wp
        out = wp.empty((1, len(points)), dtype=wp.vec3, device="cpu")
        inputs = [self._array(points[None].astype(np.float32), wp.vec3)]
        wp.launch(
            self._raster.vertex_normals,
            dim=1,
            inputs=[*inputs, self._static["triangles"], out],
            device="cpu",
        )
        return out.numpy()[0]

    def _pose_one(self, spec: FaceSpec, moved: np.ndarray, still: np.ndarray) -> PosedFace:
        s = self.scene
        marks = s.landmarks
        eyes = (still[marks["eye_left"]].mean(0) + still[marks["eye_right"]].mean(0)) / 2
        scale = float(np.linalg.norm(eyes - still[marks["chin"]].mean(0)) / TEMPLATE_FACE)
        pivot = eyes + np.array([0, 0.10, -0.075]) * scale
        unposed = self._with_extras(spec, moved, still, scale)
        rotation = pose_matrix(spec.yaw, spec.pitch, spec.roll)
        follow = np.ones(len(unposed), np.float32)
        follow[s.parts["head"]] = s.neck
        turned = (unposed - pivot) @ rotation.T
        points = (unposed - pivot) * (1 - follow[:, None]) + turned * follow[:, None]
        face = (eyes + np.array([0, 0, -0.025 * scale]) - pivot) @ rotation.T
        screen = self._project(spec, points, face, scale)
        names = {name: screen[index].mean(0)[:2] for name, index in marks.items()}
        return PosedFace(points, screen, rotation, self._to_light(spec, points - face), names)

    def _with_extras(
        self, spec: FaceSpec, moved: np.ndarray, still: np.ndarray, scale: float
    ) -> np.ndarray:
        """Head, hair shell, hat, curtain and glasses [V, 3] before posing."""
        s = self.scene
        points = np.zeros((len(s.texture), 3), np.float32)
        points[s.parts["head"]] = moved
        template = s.model.template[s.shell]
        normals = self._normals(points)[s.shell]
        for part, (thickness, _) in (
            ("hair", _shell(spec, template, scale)),
            ("hat", _hat(template, scale)),
        ):
            points[s.parts[part]] = moved[s.shell] + normals * thickness[:, None]
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

    @staticmethod
    def _project(spec: FaceSpec, points: np.ndarray, face: np.ndarray, scale: float) -> np.ndarray:
        """Perspective picture coordinates (0-1, down) and distance of world points."""
        span = FACE_SPAN * scale * spec.framing
        relative = points - face
        distance = spec.distance * scale + relative[:, 1]
        zoom = spec.distance * scale / span / np.maximum(distance, 0.02)
        x = 0.5 + spec.shift_x + relative[:, 0] * zoom
        y = 0.5 + spec.shift_y - relative[:, 2] * zoom
        return np.stack([x, y, distance], axis=-1).astype(np.float32)

    @staticmethod
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

    def _masks(self, spec: FaceSpec) -> tuple[np.ndarray, np.ndarray]:
        """Cut-out value of every vertex and the materials this face shows."""
        s = self.scene
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

    def render(self, specs: Sequence[FaceSpec]) -> np.ndarray:
        """Render the faces.

        Returns:
            uint8 [N, size, size, 3], RGB.
        """
        if not specs:
            return np.zeros((0, self.size, self.size, 3), np.uint8)
        return np.concatenate([self._render(specs[k : k + 8]) for k in range(0, len(specs), 8)])

    def _render(self, specs: Sequence[FaceSpec]) -> np.ndarray:
        wp, static = self._wp, self._static
        faces = self.pose(specs)
        side = self.size * self.factor
        count = len(specs)
        masks = [self._masks(spec) for spec in specs]
        mask = self._array(np.stack([m for m, _ in masks]), wp.float32)
        shown = self._array(np.stack([e for _, e in masks]), wp.int32)
        points = self._array(np.stack([f.points for f in faces]).astype(np.float32), wp.vec3)
        normals = wp.empty((count, len(self.scene.texture)), dtype=wp.vec3, device="cpu")
        wp.launch(
            self._raster.vertex_normals,
            dim=count,
            inputs=[points, static["triangles"], normals],
            device="cpu",
        )
        seeds = self._array(np.array([self._seed(spec) for spec in specs]), wp.int32)
        view = np.stack([f.screen for f in faces]) * np.array([side, side, 1], np.float32)
        in_light = self._array(np.stack([f.in_light for f in faces]), wp.vec3)
        _, hit, bary = self._rasterise(self._array(view, wp.vec3), shown, mask, seeds, side)
        shadow, _, _ = self._rasterise(in_light, shown, mask, seeds, SHADOW_SIZE)
        looks = self._looks(specs, faces)
        colours = wp.empty((count, side, side), dtype=wp.vec3, device="cpu")
        planes = [np.stack([make(s) for s in specs]) for make in (maps.paint, maps.relief)]
        inputs = [hit, bary, static["triangles"], static["materials"], static["texture"]]
        inputs += [static["uv"], static["occlusion"], normals, in_light, shadow, looks]
        inputs += [self._array(plane, wp.vec4) for plane in planes]
        inputs += [self._array(np.stack([background(s) for s in specs]), wp.vec3)]
        inputs += [static[key] for key in ("lips", "lips_box", "eye_left", "eye_right")]
        wp.launch(
            self._shading.shade,
            dim=(count, side, side),
            inputs=[*inputs, colours],
            device="cpu",
        )
        out = wp.empty((count, self.size, self.size, 3), dtype=wp.uint8, device="cpu")
        wp.launch(
            self._shading.resolve,
            dim=(count, self.size, self.size),
            inputs=[colours, looks, self.factor, out],
            device="cpu",
        )
        return np.stack(
            [_blurred(image, s.blur) for image, s in zip(out.numpy(), specs, strict=True)]
        )

    def _rasterise(self, screen: Any, shown: Any, mask: Any, seeds: Any, side: int) -> Any:
        wp, static = self._wp, self._static
        shape = (screen.shape[0], side, side)
        buffers = [wp.empty(shape, dtype=t, device="cpu") for t in (wp.float32, wp.int32, wp.vec2)]
        inputs = [screen, static["triangles"], static["materials"], shown, mask]
        wp.launch(
            self._raster.rasterise,
            dim=shape[0],
            inputs=[*inputs, static["texture"], seeds, *buffers],
            device="cpu",
        )
        return buffers

    @staticmethod
    def _seed(spec: FaceSpec) -> int:
        return int(generator(spec.seed, spec.index, 1).integers(1 << 30))

    def _looks(self, specs: Sequence[FaceSpec], faces: Sequence[PosedFace]) -> Any:
        struct: Any = self._shading.Look
        table: Any = np.zeros(len(specs), dtype=struct.numpy_dtype())
        for row, spec, face in zip(table, specs, faces, strict=True):
            inverse = face.rotation.T
            hair = np.array(spec.hair)
            if spec.hair_style == "buzz":
                hair = 0.75 * hair + 0.25 * np.array(spec.skin) * 0.5
            row["rotation"] = face.rotation
            row["light"] = inverse @ light_direction(spec)
            row["view"] = inverse @ np.array([0, -1.0, 0])
            row["light_colour"] = spec.light_colour
            row["sky"] = np.array(spec.ambient) * 1.15
            row["ground"] = np.array(spec.ambient) * 0.7
            row["skin"], row["lips"], row["lip_mix"] = (
                spec.skin,
                spec.lips,
                0.9 if spec.lipstick else 0.75,
            )
            row["blush"] = (1.15, 0.52, 0.55)
            row["hair"], row["iris"] = hair, spec.iris
            row["brow"] = spec.brow
            row["cloth"], row["frame"], row["hat"] = (
                spec.cloth,
                spec.glasses_colour,
                spec.hat_colour,
            )
            row["collar"], row["oil"], row["curl"] = spec.collar, spec.oil, spec.curl
            row["exposure"], row["noise"] = spec.exposure, spec.noise
            row["seed"] = self._seed(spec)
        return self._wp.array(table, dtype=struct, device="cpu")


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


def _blurred(image: np.ndarray, radius: float) -> np.ndarray:
    if radius < 0.3:
        return image
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
