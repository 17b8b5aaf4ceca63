"""Forms about action units: presence, lists, intensities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from data_pipeline.labels.action_units import (
    GRADE_WORDS,
    INTENSITIES,
    action_units,
    au_number,
    is_active,
)
from data_pipeline.labels.leaks import mentions
from data_pipeline.questions.forms.base import (
    NO,
    YES_NO,
    Context,
    Item,
    Labels,
    capitalised,
    either,
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
            # "parted lips" would give mouth_open away
            fields["short"] = action_units()[au_number(label)].aside or label
        answer = fields["short"] if is_active(value, context.threshold) else NO
        fields["word"] = capitalised(fields["short"])
        yield Item(label, answer, fields, (fields["short"], NO))


def _active(labels: Labels, context: Context) -> list[str]:
    return [label for label, value in _units(labels) if is_active(value, context.threshold)]


@form("action_unit/list", "action_unit_list")
def _unit_list(labels: Labels, context: Context) -> Iterator[Item]:
    if labels.get("action_units"):
        yield Item("all", ", ".join(_active(labels, context)) or "none")


def with_names(units: Iterable[str], held_out: tuple[str, ...]) -> list[str]:
    """Return ``AU12 (lip corner puller)`` of each unit, its number where the name would leak."""
    named = {label: f"{label} ({action_units()[au_number(label)].name})" for label in units}
    return [label if mentions(text, held_out) else text for label, text in named.items()]


@form("action_unit/names", "action_unit_names")
def _unit_names(labels: Labels, context: Context) -> Iterator[Item]:
    """The list again, each unit with its FACS name."""
    if labels.get("action_units"):
        named = with_names(_active(labels, context), context.held_out)
        yield Item("all", ", ".join(named) or "none")


def _graded(labels: Labels, words: tuple[str, ...]) -> Iterator[Item]:
    grades = tuple(float(grade) for grade in INTENSITIES)
    for label, value in _units(labels):
        if not isinstance(value, bool):  # an occurrence flag has no grade
            answer = words[int(float(value) + 0.5)]
            fields = _unit_fields(label) | {"options": either(words)}
            yield Item(label, answer, fields, words, grades, float(value))


@form("action_unit/intensity", "action_unit_intensity", "au", "name", "short")
def _unit_intensity(labels: Labels, context: Context) -> Iterator[Item]:
    yield from _graded(labels, INTENSITIES)


@form("action_unit/grade", "action_unit_grade", "au", "name", "short", "options")
def _unit_grade(labels: Labels, context: Context) -> Iterator[Item]:
    """The intensity as FACS speaks of it: trace, slight, marked, severe, maximum."""
    yield from _graded(labels, GRADE_WORDS)
