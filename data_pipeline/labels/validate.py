"""What a record's labels must look like; every problem is a line that names the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.labels.action_units import SIDES, parse_action_unit
from data_pipeline.labels.ages import band_limits, canonical_band
from data_pipeline.labels.attributes import snake_case
from data_pipeline.labels.expressions import (
    COMPOUND_EXPRESSIONS,
    EXPRESSIONS,
    OTHER_EXPRESSIONS,
)
from face_mllm.errors import UserError

GENDERS = ("male", "female")
POSE_AXES = ("yaw", "pitch", "roll")


def validate_labels(labels: dict[str, Any]) -> list[str]:
    """Return what is wrong with ``labels``, nothing when all is well.

    Checked: canonical words, AU names and ranges (0-5), booleans, ages 0-130, degrees within
    +-180, facial actions within 0-1, vote shares that sum to at most 1. Keys outside the contract
    are reported too.
    """
    problems: list[str] = []
    for key, value in labels.items():
        check = _CHECKS.get(key)
        if check is None:
            problems.append(f"{key}: not a label key (known: {', '.join(_CHECKS)})")
        else:
            problems.extend(f"{key}: {problem}" for problem in check(value))
    return problems


def contradictions(labels: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (which labels, what they say) of every two labels that cannot both be true.

    Compared are the age with its band (an age counts as itself and as rounded), the gender with
    the attribute ``male``, and the expression with the annotators' votes. Labels must be valid.
    """
    age, band = labels.get("age"), labels.get("age_band")
    if age is not None and band is not None and not _within(band, age):
        yield "age and age_band", f"age {age:g}, age_band {band}"
    gender, male = labels.get("gender"), labels.get("attributes", {}).get("male")
    if gender is not None and male is not None and male != (gender == "male"):
        yield "gender and male", f"gender {gender} but attribute male {str(male).lower()}"
    word, votes = labels.get("expression"), labels.get("expression_votes")
    if word is not None and votes and not votes.get(word):
        yield "expression and its votes", f"expression {word}, votes for {', '.join(votes)}"


def _within(band: str, age: float) -> set[float]:
    """Return those of an age and the whole year next to it that lie in a band."""
    low, high = band_limits(band)
    top = math.inf if band.endswith("+") else high
    return {years for years in (age, round(age)) if low <= years < top}


def _number(value: Any, low: float, high: float) -> Iterator[str]:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not low <= value <= high:
        yield f"{value!r} is not a number within {low:g} to {high:g}"


def _word(choices: tuple[str, ...]) -> Callable[[Any], Iterator[str]]:
    def check(value: Any) -> Iterator[str]:
        if value not in choices:
            yield f"{value!r} is not one of {', '.join(choices)}"

    return check


def _mapping(item: Callable[[str, Any], Iterator[str]]) -> Callable[[Any], Iterator[str]]:
    def check(value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"expected names with values, found {type(value).__name__}"
            return
        for name, entry in value.items():
            yield from (f"{name}: {problem}" for problem in item(name, entry))

    return check


def _unit_name(name: str) -> Iterator[str]:
    try:
        unit = parse_action_unit(name)
    except UserError as error:
        yield error.message
        return
    if unit.label != name:
        yield f"write it as {unit.label}"


def _action_unit(name: str, value: Any) -> Iterator[str]:
    yield from _unit_name(name)
    if not isinstance(value, bool):
        yield from _number(value, 0, 5)


def _side(name: str, value: Any) -> Iterator[str]:
    yield from _unit_name(name)
    yield from _word(tuple(SIDES.values()))(value)


def _attribute(name: str, value: Any) -> Iterator[str]:
    if snake_case(name) != name:
        yield f"write it as {snake_case(name)}"
    if not isinstance(value, bool):
        yield f"{value!r} is not true or false"


def _pose(name: str, value: Any) -> Iterator[str]:
    if name not in POSE_AXES:
        yield f"not one of {', '.join(POSE_AXES)}"
    yield from _number(value, -180, 180)


def _band(value: Any) -> Iterator[str]:
    try:
        if canonical_band(value) != value:
            yield f"write it as {canonical_band(value)}"
    except UserError as error:
        yield error.message


def _share(name: str, value: Any) -> Iterator[str]:
    if name not in EXPRESSIONS:
        yield f"not one of {', '.join(EXPRESSIONS)}"
    yield from _number(value, 0, 1)


def _votes(value: Any) -> Iterator[str]:
    problems = list(_mapping(_share)(value))
    yield from problems
    if not problems and sum(value.values()) > 1 + 1e-6:
        yield f"shares sum to {sum(value.values()):g}, more than 1"


def _anything(value: Any) -> Iterator[str]:
    return iter(())


_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "expression": _word((*EXPRESSIONS, *OTHER_EXPRESSIONS)),
    "expression_votes": _votes,
    "compound_expression": _word(COMPOUND_EXPRESSIONS),
    "action_units": _mapping(_action_unit),
    "action_unit_sides": _mapping(_side),
    "attributes": _mapping(_attribute),
    "age": lambda value: _number(value, 0, 130),
    "age_band": _band,
    "head_pose": _mapping(_pose),
    "gender": _word(GENDERS),
    "landmarks": _anything,
    "facial_actions": _mapping(lambda name, value: _number(value, 0, 1)),
    "parameters": _mapping(lambda name, value: iter(())),
}
LABEL_KEYS = frozenset(_CHECKS)
