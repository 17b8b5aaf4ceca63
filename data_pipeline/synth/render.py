"""Renders faces: numpy poses the linear head, Warp kernels rasterise and shade it on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.synth import maps
from data_pipeline.synth.background import background, blurred
from data_pipeline.synth.pose import SHADOW_SIZE, PosedFace, light_direction, pose, visibility
from data_pipeline.synth.sample import sample_face
from data_pipeline.synth.scene import scene
from data_pipeline.synth.spec import FaceSpec, generator
from face_mllm.errors import UserError


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
        from data_pipeline.synth import raster, shading
        from data_pipeline.synth.quiet_warp import wp

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
        return pose(specs, self._normals)

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
        masks = [visibility(spec) for spec in specs]
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
            [blurred(image, s.blur) for image, s in zip(out.numpy(), specs, strict=True)]
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
