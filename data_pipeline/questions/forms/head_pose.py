"""Forms about head pose, in degrees."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.labels.validate import POSE_AXES
from data_pipeline.questions.forms.base import Context, Item, Labels, form, number


@form("head_pose/degrees", "head_pose", "axis")
def _pose(labels: Labels, context: Context) -> Iterator[Item]:
    pose = labels.get("head_pose", {})
    for axis in POSE_AXES:
        if axis in pose and context.pose.holds(pose[axis]):
            yield number(axis, pose[axis], context.pose, context)


@form("head_pose/units", "head_pose_units", "axis")
def _pose_units(labels: Labels, context: Context) -> Iterator[Item]:
    pose = labels.get("head_pose", {})
    for axis in POSE_AXES:
        if axis in pose and context.pose.holds(pose[axis]):
            yield number(axis, pose[axis], context.pose, context, "degree")


# what a positive, a zero and a negative angle look like in the picture; no two words begin alike,
# nor with the same token ("up", "upright"), so the first token of an answer decides it
POSE_WORDS = {
    "yaw": ("left", "straight", "right"),
    "pitch": ("up", "level", "down"),
    "roll": ("clockwise", "vertical", "counterclockwise"),
}


def pose_words(axis: str, degrees: int) -> str:
    """An angle as direction and size, such as ``left 30``: the first word names the axis."""
    positive, zero, negative = POSE_WORDS[axis]
    if degrees == 0:
        return zero
    return f"{positive if degrees > 0 else negative} {abs(degrees)}"


@form("head_pose/words", "head_pose", "axis", "positive", "zero", "negative")
def _pose_words(labels: Labels, context: Context) -> Iterator[Item]:
    pose, grid = labels.get("head_pose", {}), context.pose
    for axis in POSE_AXES:
        if axis in pose and grid.holds(pose[axis]):
            value = float(pose[axis])
            degrees = round(value) if context.exact else grid.nearest(value)
            choices = tuple(pose_words(axis, point) for point in grid.points)
            answer = pose_words(axis, degrees)
            words = dict(zip(("positive", "zero", "negative"), POSE_WORDS[axis], strict=True))
            yield Item(axis, answer, {"axis": axis, **words}, choices, grid.values, value)
