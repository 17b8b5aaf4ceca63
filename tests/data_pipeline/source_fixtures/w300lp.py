"""300W-LP: radians as pitch, yaw, roll; a pose beyond 99 degrees; two views and a mirror image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io

from data_pipeline.sources.base import hash_split
from source_fixtures import Case, picture

NAME = "300wlp"
# a name of the face, two views of it, and the mirror image of the first
POSES = {
    "AFW/AFW_134212_1_0": (10, -20, 5),
    "AFW/AFW_134212_1_1": (10, -60, 5),
    "AFW_Flip/AFW_134212_1_0": (10, 20, -5),
    "HELEN/HELEN_30_1_0": (-30, 100, 0),
    "IBUG/IBUG_image_003_1_0": (0, 99, 0),
}
BOX = [4.0, 0.0, 20.0, 18.5]


def write_mat(path: Path, pitch: float, yaw: float, roll: float, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pose = np.array([[*np.radians([pitch, yaw, roll]), 12.0, 13.0, 0.0, 0.001]])
    points = np.array([[4.0, 20.0, 12.0], [-2.0, 6.0, 18.5]])  # the first is above the picture
    scipy.io.savemat(path, {"Pose_Para": pose, "pt2d": points, **more})


def write(root: Path) -> None:
    for name, pose in POSES.items():
        write_mat(root / f"{name}.mat", *pose)
        picture(root / f"{name}.jpg")
    write_mat(root / "Code" / "Model.mat", 0, 0, 0)
    write_mat(root / "landmarks" / "AFW" / "AFW_134212_1_0_pts.mat", 0, 0, 0)


def pose(name: str):
    pitch, yaw, roll = map(float, POSES[name])
    return {"head_pose": {"yaw": yaw, "pitch": pitch, "roll": roll}}


def key(name: str) -> str:
    return "300wlp_" + name.replace("/", "_")


FACE = {
    "AFW/AFW_134212_1_0": "300wlp_AFW_134212_1",
    "AFW/AFW_134212_1_1": "300wlp_AFW_134212_1",
    "AFW_Flip/AFW_134212_1_0": "300wlp_AFW_134212_1",
    "IBUG/IBUG_image_003_1_0": "300wlp_IBUG_image_003_1",
}
BEYOND = {"no pose within 99 degrees": 1}

CASES = [
    Case(
        records={key(name): ("train", pose(name)) for name in FACE},
        dropped=BEYOND,
        subjects={key(name): face for name, face in FACE.items()},
        boxes={key(name): BOX for name in FACE},
    ),
    Case(
        protocol="300wlp/train-unmirrored",
        records={key(name): ("train", pose(name)) for name in FACE if "Flip" not in name},
        dropped=BEYOND | {"mirrored copy": 1},
    ),
    Case(
        protocol="300wlp/hash-80-10-10",
        records={key(name): (hash_split(face), pose(name)) for name, face in FACE.items()},
        dropped=BEYOND,
    ),
]
