"""Face labels as target tensors, and what mirroring or turning a picture does to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data_pipeline.labels.action_units import au_number, is_active
from data_pipeline.labels.ages import band_limits
from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.expressions import EXPRESSIONS
from data_pipeline.labels.leaks import canonical_held_out, mentions

POSE_AXES = ("yaw", "pitch", "roll")
UNKNOWN = math.nan
NO_EXPRESSION = -1
COLOUR_GROUPS = ("hair_color", "eye_color")
COLOUR_ATTRIBUTES = ("rosy_cheeks", "wearing_lipstick", "heavy_makeup", "freckles")

Labels = dict[str, Any]


@dataclass(frozen=True)
class Targets:
    """Targets of a batch; NaN (or ``NO_EXPRESSION``) where a label is unknown.

    Args:
        intensity: [batch, AUs] 0-5, only where the coding has intensities.
        active: [batch, AUs] 0 or 1.
        expression: [batch] index into ``EXPRESSIONS``.
        attributes: [batch, attributes] 0 or 1.
        age: [batch, 2] years, lower and upper end (equal when the age is exact).
        pose: [batch, 3] yaw, pitch, roll in degrees.
    """

    intensity: torch.Tensor
    active: torch.Tensor
    expression: torch.Tensor
    attributes: torch.Tensor
    age: torch.Tensor
    pose: torch.Tensor

    def __getitem__(self, rows: Any) -> Targets:
        return Targets(**{name: value[rows] for name, value in self.__dict__.items()})

    def to(self, device: torch.device) -> Targets:
        """Move every tensor."""
        return Targets(**{name: value.to(device) for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class LabelSpace:
    """Which AUs and attributes a training set knows, held-out attributes left out."""

    action_units: tuple[str, ...]
    attributes: tuple[str, ...]

    @classmethod
    def of(cls, labels: Iterable[Labels], held_out: Iterable[str]) -> LabelSpace:
        """Collect the names in use; a held-out name or one that speaks of it is dropped."""
        banned = canonical_held_out(held_out)
        units: set[str] = set()
        names: set[str] = set()
        for known in labels:
            units.update(known.get("action_units", {}))
            names.update(known.get("attributes", {}))
            names.update(["male"] if "gender" in known else [])
        kept = (name for name in names if name not in banned)
        allowed = (name for name in kept if mentions(name.replace("_", " "), banned) is None)
        return cls(tuple(sorted(units, key=au_number)), tuple(sorted(allowed)))

    def encode(self, batch: Sequence[Labels]) -> Targets:
        """Return the target tensors of a batch of labels."""
        units = [
            [labels.get("action_units", {}).get(name) for name in self.action_units]
            for labels in batch
        ]
        intensity = [[_intensity(value) for value in row] for row in units]
        active = [[UNKNOWN if v is None else float(is_active(v)) for v in row] for row in units]
        known = [_attributes(labels) for labels in batch]
        flags = [[float(row.get(name, UNKNOWN)) for name in self.attributes] for row in known]
        poses = [labels.get("head_pose") or {} for labels in batch]
        return Targets(
            _table(intensity, len(self.action_units)),
            _table(active, len(self.action_units)),
            torch.tensor([_expression(labels) for labels in batch]),
            _table(flags, len(self.attributes)),
            _table([_age(labels) for labels in batch], 2),
            _table([[pose.get(axis, UNKNOWN) for axis in POSE_AXES] for pose in poses], 3),
        )


def _table(rows: list[list[float]], columns: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), columns)


def _intensity(value: Any) -> float:
    return UNKNOWN if value is None or isinstance(value, bool) else float(value)


def _expression(labels: Labels) -> int:
    word = labels.get("expression")
    return EXPRESSIONS.index(word) if word in EXPRESSIONS else NO_EXPRESSION


def _attributes(labels: Labels) -> dict[str, bool]:
    known = labels.get("attributes", {})
    if "male" in known or "gender" not in labels:
        return known
    return {**known, "male": labels["gender"] == "male"}


def _age(labels: Labels) -> list[float]:
    if "age" in labels:
        return [float(labels["age"])] * 2
    if "age_band" in labels:
        return list(band_limits(labels["age_band"]))
    return [UNKNOWN, UNKNOWN]


def moved_labels(
    labels: Labels, flip: bool, degrees: float, gray: bool = False, blurred: bool = False
) -> Labels:
    """Return the labels of the picture after mirroring it and then turning it clockwise.

    Mirroring negates yaw and roll (300W-LP signs: yaw > 0 is the image's left, roll > 0 is
    clockwise) and swaps attributes that name a side; turning changes the pose as
    :func:`turned_pose` says. Without colour, attributes of colour become unknown; a picture
    blurred on purpose no longer tells whether it was blurry.
    """
    moved = dict(labels)
    if "head_pose" in labels:
        sign = {"yaw": -1.0, "roll": -1.0} if flip else {}
        pose = {axis: sign.get(axis, 1.0) * value for axis, value in labels["head_pose"].items()}
        moved["head_pose"] = turned_pose(pose, degrees) if degrees else pose
    if "attributes" in labels and (flip or gray or blurred):
        moved["attributes"] = {
            _mirrored(name) if flip else name: value
            for name, value in labels["attributes"].items()
            if not (gray and is_colour(name)) and not (blurred and name == "blurry")
        }
    return moved


def turned_pose(pose: dict[str, float], degrees: float) -> dict[str, float]:
    """Return the head pose after turning the picture clockwise, exactly.

    Pose is R = X(pitch) Y(yaw) Z(roll) as in 300W-LP, roll innermost; turning the picture puts
    Z(degrees) outside, so all three angles change unless the face is frontal. A pose that lacks
    an axis cannot be turned and becomes unknown.
    """
    if set(pose) != set(POSE_AXES):
        return {}
    yaw, pitch, roll, turn = (math.radians(v) for v in (*(pose[a] for a in POSE_AXES), degrees))
    # the head's horizontal axis and the two entries that hold yaw and pitch, before the turn
    x = (math.cos(yaw) * math.cos(roll), math.sin(yaw), math.cos(yaw) * math.sin(roll))
    down = math.sin(pitch)
    z0 = down * math.sin(yaw) * math.cos(roll) - math.cos(pitch) * math.sin(roll)
    z1 = -down * math.cos(yaw)
    z2 = down * math.sin(yaw) * math.sin(roll) + math.cos(pitch) * math.cos(roll)
    cos, sin = math.cos(turn), math.sin(turn)
    turned = [cos * a + sin * b for a, b in zip(x, (z0, z1, z2), strict=True)]
    back = -sin * x[1] + cos * z1
    middle = math.cos(pitch) * math.cos(yaw)
    return {
        "yaw": math.degrees(math.asin(max(-1.0, min(1.0, turned[1])))),
        "pitch": math.degrees(math.atan2(-back, middle)),
        "roll": math.degrees(math.atan2(turned[2], turned[0])),
    }


def _mirrored(name: str) -> str:
    other = {"left": "right", "right": "left"}
    return "_".join(other.get(word, word) for word in name.split("_"))


def is_colour(name: str) -> bool:
    """Tell whether an attribute cannot be seen in a gray picture."""
    return attribute(name).group in COLOUR_GROUPS or name in COLOUR_ATTRIBUTES
