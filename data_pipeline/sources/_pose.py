"""Head pose as datasets give it, turned into this project's labels.

The convention is 300W-LP's: degrees, yaw > 0 towards the image's left, pitch > 0 up, roll > 0
clockwise in the image, and the head is turned by Rx(pitch) Ry(yaw) Rz(roll). That follows from the
rotation with which 3DDFA and face3d rebuild the fitted mesh from ``Pose_Para`` (x right, y up, z to
the camera); a test holds it against the renderer's. It was not checked on the pictures themselves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.sources._mat import load_mat
from face_mllm.errors import UserError

_INVISIBLE = -1  # both coordinates of a landmark that cannot be seen (AFLW2000-3D)


def head_pose(yaw: float, pitch: float, roll: float) -> dict[str, dict[str, float]]:
    """Return the label of angles in degrees."""
    angles = {"yaw": yaw, "pitch": pitch, "roll": roll}
    # adding zero turns -0.0 into 0.0
    return {"head_pose": {axis: round(float(value), 4) + 0.0 for axis, value in angles.items()}}


def within(labels: dict[str, dict[str, float]], limit: float) -> bool:
    """Tell whether all angles are known and within the limit in degrees."""
    return all(abs(value) <= limit for value in labels["head_pose"].values())


def rotation_pose(rotation: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the label of a rotation in camera axes (x right, y down, z away).

    Takes Rx(pitch) Ry(yaw) Rz(roll) apart, as FSA-Net's scripts do for BIWI, so that the angles
    mean what they mean in 300W-LP; Hopenet's older formula takes the opposite order apart, which
    differs where more than one angle is large.
    """
    yaw = math.atan2(rotation[0, 2], math.hypot(rotation[1, 2], rotation[2, 2]))
    pitch = math.atan2(rotation[1, 2], rotation[2, 2])
    roll = math.atan2(-rotation[0, 1], rotation[0, 0])
    return head_pose(*map(math.degrees, (yaw, pitch, roll)))


def read_pose_mat(path: Path) -> tuple[dict[str, dict[str, float]], tuple[float, ...]]:
    """Return the pose label and the box of the landmarks of a 300W-LP or AFLW2000-3D file.

    ``Pose_Para`` is pitch, yaw, roll in radians, then translation and scale: neither the order nor
    the unit of the label. The box is the hull of all 68 landmarks where the file has them
    (``pt3d_68``), else of those that can be seen (``pt2d``), without a margin; empty without any.

    Raises:
        UserError: not such a file.
    """
    found = load_mat(path, only=("Pose_Para", "pt2d", "pt3d_68"))
    angles = np.ravel(found.get("Pose_Para", ()))
    if len(angles) < 3:
        raise UserError(f"{path}: no Pose_Para with pitch, yaw, roll", "unpack it again")
    pitch, yaw, roll = np.degrees(angles[:3])
    return head_pose(yaw, pitch, roll), _hull(path, found)


def _hull(path: Path, found: dict[str, Any]) -> tuple[float, ...]:
    points = found.get("pt3d_68", found.get("pt2d"))
    if points is None:
        return ()
    if np.ndim(points) != 2 or len(points) not in (2, 3):
        raise UserError(
            f"{path}: landmarks of shape {np.shape(points)}, not 2 x N or 3 x N", "unpack it again"
        )
    x, y = points[0], points[1]
    seen = ~((x == _INVISIBLE) & (y == _INVISIBLE))
    if seen.sum() < 3:
        return ()
    low, high = np.maximum(points[:2, seen].min(axis=1), 0), points[:2, seen].max(axis=1)
    return tuple(round(float(value), 2) for value in (*low, *high))
