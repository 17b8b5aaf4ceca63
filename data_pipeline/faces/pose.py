"""A head-pose label after its picture was turned in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from data_pipeline.sources._pose import rotation_pose


def turned_pose(pose: Mapping[str, float], degrees: float) -> dict[str, float]:
    """Return the pose of a head whose picture was turned clockwise by ``degrees``.

    The label means Rx(pitch) Ry(yaw) Rz(roll) (see ``data_pipeline.sources._pose``), so turning
    the picture changes all three angles of a head that also looks aside; without all three known
    nothing can be said, and the result is empty.
    """
    if {"yaw", "pitch", "roll"} - set(pose):
        return {}
    yaw, pitch, roll = (math.radians(pose[axis]) for axis in ("yaw", "pitch", "roll"))
    # camera axes: x right, y down, z away; there pitch > 0 (up) is a negative turn about x
    turned = _about("z", math.radians(degrees)) @ _about("x", -pitch) @ _about("y", yaw)
    return rotation_pose(turned @ _about("z", roll))["head_pose"]


def _about(axis: str, angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    matrix = {
        "x": [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]],
        "y": [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]],
        "z": [[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]],
    }
    return np.array(matrix[axis])
