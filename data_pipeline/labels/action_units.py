"""The FACS action unit registry: number, name, muscles, sides, and when a unit counts as active.

Names and muscles follow Ekman, Friesen and Hager, *Facial Action Coding System* (2002).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from face_mllm.errors import UserError

ACTIVE_THRESHOLD = 2.0
"""Intensity from which a unit counts as active (the DISFA protocol: grade B or more)."""

INTENSITIES: tuple[str, ...] = ("0", "1", "2", "3", "4", "5")
"""FACS grades: absent, then A (trace) to E (maximum)."""

GRADE_WORDS: tuple[str, ...] = ("absent", "trace", "slight", "marked", "severe", "maximum")
"""The same grades in the words of the FACS manual."""

AULabel = float | int | bool

SIDES: Mapping[str, str] = {"L": "left", "R": "right"}
"""Prefixes of units seen on one side only (``L12``), as the person's own left and right."""

_SIDED_NAME = re.compile(r"^\s*([LR])(\d{1,2})\s*$")
_AU_NAME = re.compile(r"^\s*(?:AU)?[\s_-]*0*(\d{1,2})\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class ActionUnit:
    """One row of the registry.

    Args:
        number: FACS number.
        name: FACS name, lower case.
        short: a plain name of what one sees.
        muscles: the muscles FACS names for it.
        aside: a name by muscle, for when ``short`` would give a held-out attribute away.
        one_sided: datasets code it on one side at a time (``L12``).
    """

    number: int
    name: str
    short: str
    muscles: tuple[str, ...]
    aside: str = ""
    one_sided: bool = False

    @property
    def label(self) -> str:
        """The key used in labels, such as ``AU12``."""
        return f"AU{self.number}"


@cache
def action_units() -> Mapping[int, ActionUnit]:
    """Return the registry by number, in rising order."""
    raw = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {
        number: ActionUnit(number, **{**row, "muscles": tuple(row["muscles"])})
        for number, row in sorted(raw.items())
    }


@cache
def parse_action_unit(text: str | int) -> ActionUnit:
    """Return the unit written as ``AU12``, ``au_12``, ``12`` or ``AU 12``.

    Raises:
        UserError: when the text is no action unit of the registry.
    """
    match = _AU_NAME.match(str(text))
    unit = action_units().get(int(match.group(1))) if match else None
    if unit is None:
        raise UserError(f"{text!r} is not a FACS action unit", "write it as AU1, AU12, ...")
    return unit


def parse_sided_unit(text: str) -> tuple[ActionUnit, str | None]:
    """Return the unit and the side of ``L12`` (left), ``R12`` (right) or ``12`` (None: both).

    Raises:
        UserError: when the text is no action unit of the registry.
    """
    match = _SIDED_NAME.match(text)
    if match is None:
        return parse_action_unit(text), None
    return parse_action_unit(match.group(2)), SIDES[match.group(1)]


def au_number(label: str) -> int:
    """Return the number of a canonical label (``AU12`` -> 12), for sorting and lists."""
    return parse_action_unit(label).number


def is_active(value: AULabel, threshold: float = ACTIVE_THRESHOLD) -> bool:
    """Tell whether an occurrence flag or a 0-5 intensity counts as active.

    Args:
        value: true/false from an occurrence coding, or an intensity 0-5.
        threshold: smallest active intensity (2 in DISFA's protocol).
    """
    return value if isinstance(value, bool) else float(value) >= threshold
