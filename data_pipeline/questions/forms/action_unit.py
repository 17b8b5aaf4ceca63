"""Forms about action units: presence, lists, intensities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.labels.action_units import INTENSITIES, action_units, au_number, is_active
from data_pipeline.labels.leaks import mentions
from data_pipeline.questions.forms.base import (
    NO,
    YES_NO,
    Context,
    Item,
    Labels,
    capitalised,
    form,
    yes_no,
)


def _units(labels: Labels) -> list[tuple[str, Any]]:
    pairs = labels.get("action_units", {}).items()
    return sorted(pairs, key=lambda pair: au_number(pair[0]))


def _unit_fields(label: str) -> dict[str, str]:
    unit = action_units()[au_number(label)]
    return {"au": unit.label, "name": unit.name, "short": unit.short}


@form("action_unit/yes_no", "action_unit", "au", "name", "short")
def _unit_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    for label, value in _units(labels):
        answer = yes_no(is_active(value, context.threshold))
        yield Item(label, answer, _unit_fields(label), YES_NO)


@form("action_unit/named", "action_unit", "au", "name", "short", "word")
def _unit_named(labels: Labels, context: Context) -> Iterator[Item]:
    """The plain name if active, else no: a small LLM learns it long before yes and no."""
    for label, value in _units(labels):
        fields = _unit_fields(label)
        if mentions(fields["short"], context.held_out):
            fields["short"] = label  # "parted lips" would give mouth_open away
        answer = fields["short"] if is_active(value, context.threshold) else NO
        fields["word"] = capitalised(fields["short"])
        yield Item(label, answer, fields, (fields["short"], NO))


@form("action_unit/list", "action_unit_list")
def _unit_list(labels: Labels, context: Context) -> Iterator[Item]:
    units = _units(labels)
    active = [label for label, value in units if is_active(value, context.threshold)]
    if units:
        yield Item("all", ", ".join(active) or "none")


@form("action_unit/intensity", "action_unit_intensity", "au", "name", "short")
def _unit_intensity(labels: Labels, context: Context) -> Iterator[Item]:
    grades = tuple(float(grade) for grade in INTENSITIES)
    for label, value in _units(labels):
        if not isinstance(value, bool):
            answer = str(int(float(value) + 0.5))
            yield Item(label, answer, _unit_fields(label), INTENSITIES, grades, float(value))
