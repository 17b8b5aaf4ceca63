"""AFLW2000-3D: invisible landmarks are -1, all 68 are in pt3d_68."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from source_fixtures import Case, picture
from source_fixtures.w300lp import write_mat

NAME = "aflw2000"
SEEN = np.array([[-1.0, 9.0, 5.0, 7.0], [-1.0, 8.0, 4.0, 6.0]])
ALL = np.array([[2.0, 9.0, 5.0], [3.0, 8.0, 4.0], [0.0, -7.0, 5.0]])


def write(root: Path) -> None:
    folder = root / "AFLW2000"
    write_mat(folder / "image00002.mat", -5, 40, 3, pt2d=SEEN)
    write_mat(folder / "image00004.mat", 0, 0, -99.5, pt2d=SEEN)
    write_mat(folder / "image00006.mat", 12, 0, 0, pt2d=SEEN, pt3d_68=ALL)
    write_mat(folder / "image00008.mat", 1, 2, 3, pt2d=np.full((2, 21), -1.0))
    write_mat(folder / "Code" / "image00010.mat", 0, 0, 0)
    for number in (2, 4, 6, 8):
        picture(folder / f"image0000{number}.jpg")


def pose(yaw: float, pitch: float, roll: float):
    return "test", {"head_pose": {"yaw": yaw, "pitch": pitch, "roll": roll}}


CASES = [
    Case(
        records={
            "aflw2000_image00002": pose(40.0, -5.0, 3.0),
            "aflw2000_image00006": pose(0.0, 12.0, 0.0),
            "aflw2000_image00008": pose(2.0, 1.0, 3.0),
        },
        dropped={"no pose within 99 degrees": 1},
        boxes={
            "aflw2000_image00002": [5.0, 4.0, 9.0, 8.0],
            "aflw2000_image00006": [2.0, 3.0, 9.0, 8.0],
            "aflw2000_image00008": [],
        },
    )
]
