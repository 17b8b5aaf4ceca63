"""Answer forms: what a record's labels let one ask, before any wording is chosen.

Each form is a function from labels to items; a label that is absent gives no item, so unknown
never becomes a question. Registering a new form here and its wordings in ``templates/`` is all
a new kind of question needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.labels.action_units import INTENSITIES, action_units, au_number, is_active
from data_pipeline.labels.ages import FAIRFACE_BANDS
from data_pipeline.labels.attributes import attribute, groups
from data_pipeline.labels.expressions import BASIC7
from data_pipeline.labels.leaks import mentions
from data_pipeline.labels.validate import GENDERS, POSE_AXES

YES_NO = ("yes", "no")
NO = YES_NO[1]
Labels = dict[str, Any]


class Grid(BaseModel):
    """Evenly spaced whole numbers, both ends included (years or degrees)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int
    stop: int
    step: int = Field(gt=0)

    @cached_property
    def points(self) -> tuple[int, ...]:
        """Every number of the grid in rising order."""
        return tuple(range(self.start, self.stop + 1, self.step))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The points as answers."""
        return tuple(map(str, self.points))

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The points as numbers."""
        return tuple(map(float, self.points))

    def nearest(self, value: float) -> int:
        """Return the grid point nearest to ``value``; halves go up."""
        place = int((value - self.start) / self.step + 0.5)
        return self.start + self.step * min(max(place, 0), len(self.points) - 1)

    def holds(self, value: float) -> bool:
        """Tell whether ``value`` lies on the grid or within half a step of its ends."""
        return self.start - self.step / 2 <= value <= self.stop + self.step / 2


AGE_GRID = Grid(start=0, stop=95, step=5)
POSE_GRID = Grid(start=-90, stop=90, step=10)


@dataclass(frozen=True)
class Context:
    """What the forms need besides labels.

    Args:
        classes: the expression words of the protocol.
        threshold: smallest AU intensity that counts as active.
        exact: answer numbers to the unit instead of to the grid.
        age, pose: grids of numeric choices.
        key: seeds shuffled options; ``canonical`` order when empty.
        caption: the record's caption, or empty.
        held_out: attributes that may not show up among options.
    """

    classes: tuple[str, ...] = BASIC7
    threshold: float = 2.0
    exact: bool = False
    age: Grid = AGE_GRID
    pose: Grid = POSE_GRID
    key: str = ""
    caption: str = ""
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One thing to ask.

    Args:
        name: what is asked about (``AU12``, ``eyeglasses``, ``yaw``, ``all``).
        answer: the closed answer, or the free text.
        fields: what the wordings may mention.
        choices: closed answer set, empty for free text.
        values: numbers the choices stand for, None for words.
        truth: the exact number behind a numeric answer.
    """

    name: str
    answer: str
    fields: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    truth: float | None = None


@dataclass(frozen=True)
class Form:
    """A registered form: its function, the task of its questions, and its placeholders."""

    build: Callable[[Labels, Context], Iterator[Item]]
    task: str
    placeholders: frozenset[str]


FORMS: dict[str, Form] = {}


def _form(key: str, task: str, *placeholders: str) -> Callable[[Any], Any]:
    def register(build: Callable[[Labels, Context], Iterator[Item]]) -> Any:
        FORMS[key] = Form(build, task, frozenset(placeholders))
        return build

    return register


def digest(*parts: object) -> int:
    """Return a 64-bit number of the parts, the same on every machine and Python."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _shuffled(words: Sequence[str], context: Context, name: str) -> tuple[str, ...]:
    if not context.key:
        return tuple(words)
    return tuple(sorted(words, key=lambda word: digest(context.key, name, word)))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _yes_no(flag: bool) -> str:
    return YES_NO[0] if flag else YES_NO[1]


def _expression(labels: Labels, context: Context) -> str | None:
    word = labels.get("expression")
    return word if word in context.classes else None


@_form("expression/word", "expression")
def _expression_word(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        yield Item("all", word, choices=context.classes)


@_form("expression/sentence", "expression_sentence")
def _expression_sentence(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        yield Item("all", word)


@_form("expression/choice", "expression_choice", "options")
def _expression_choice(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        options = _shuffled(context.classes, context, "expression")
        yield Item("all", word, {"options": ", ".join(options)}, choices=options)


@_form("expression/yes_no", "expression_yes_no", "expression")
def _expression_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        for other in context.classes:
            yield Item(other, _yes_no(other == word), {"expression": other}, YES_NO)


def _units(labels: Labels) -> list[tuple[str, Any]]:
    pairs = labels.get("action_units", {}).items()
    return sorted(pairs, key=lambda pair: au_number(pair[0]))


def _unit_fields(label: str) -> dict[str, str]:
    unit = action_units()[au_number(label)]
    return {"au": unit.label, "name": unit.name, "short": unit.short}


@_form("action_unit/yes_no", "action_unit", "au", "name", "short")
def _unit_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    for label, value in _units(labels):
        answer = _yes_no(is_active(value, context.threshold))
        yield Item(label, answer, _unit_fields(label), YES_NO)


@_form("action_unit/named", "action_unit", "au", "name", "short", "word")
def _unit_named(labels: Labels, context: Context) -> Iterator[Item]:
    """The plain name if active, else no: a small LLM learns it long before yes and no."""
    for label, value in _units(labels):
        fields = _unit_fields(label)
        if mentions(fields["short"], context.held_out):
            # "parted lips" would give mouth_open away
            fields["short"] = action_units()[au_number(label)].aside or label
        answer = fields["short"] if is_active(value, context.threshold) else NO
        fields["word"] = _capitalised(fields["short"])
        yield Item(label, answer, fields, (fields["short"], NO))


@_form("action_unit/list", "action_unit_list")
def _unit_list(labels: Labels, context: Context) -> Iterator[Item]:
    units = _units(labels)
    active = [label for label, value in units if is_active(value, context.threshold)]
    if units:
        yield Item("all", ", ".join(active) or "none")


@_form("action_unit/intensity", "action_unit_intensity", "au", "name", "short")
def _unit_intensity(labels: Labels, context: Context) -> Iterator[Item]:
    grades = tuple(float(grade) for grade in INTENSITIES)
    for label, value in _units(labels):
        if not isinstance(value, bool):
            answer = str(int(float(value) + 0.5))
            yield Item(label, answer, _unit_fields(label), INTENSITIES, grades, float(value))


@_form("attribute/yes_no", "attribute", "question", "phrase", "word")
def _attribute_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    for name, value in sorted(labels.get("attributes", {}).items()):
        row = attribute(name)
        word = _capitalised(row.phrase)
        fields = {"question": row.question, "phrase": row.phrase, "word": word}
        yield Item(name, _yes_no(value), fields, YES_NO)


@_form("attribute/named", "attribute", "question", "phrase", "word")
def _attribute_named(labels: Labels, context: Context) -> Iterator[Item]:
    """The attribute's own words if present, else no."""
    for name, value in sorted(labels.get("attributes", {}).items()):
        row = attribute(name)
        fields = {"question": row.question, "phrase": row.phrase, "word": _capitalised(row.short)}
        yield Item(name, row.short if value else NO, fields, (row.short, NO))


@_form("attribute/choice", "attribute_choice", "group", "options")
def _attribute_choice(labels: Labels, context: Context) -> Iterator[Item]:
    known = labels.get("attributes", {})
    for group, members in groups().items():
        asked = [row for row in members if row.name in known and row.name not in context.held_out]
        true = [row.value for row in asked if known[row.name]]
        if len(asked) >= 2 and len(true) == 1:  # several or no true colour: nothing to choose
            options = _shuffled([row.value for row in asked], context, group)
            fields = {"group": group.replace("_", " "), "options": ", ".join(options)}
            yield Item(group, true[0], fields, options)


def _number(name: str, value: float, grid: Grid, context: Context) -> Item:
    answer = round(value) if context.exact else grid.nearest(value)
    return Item(name, str(answer), {"axis": name}, grid.words, grid.values, float(value))


@_form("age/years", "age")
def _age_years(labels: Labels, context: Context) -> Iterator[Item]:
    if "age" in labels:
        yield _number("all", labels["age"], context.age, context)


@_form("age/band", "age_band")
def _age_band(labels: Labels, context: Context) -> Iterator[Item]:
    band = labels.get("age_band")
    if band in FAIRFACE_BANDS:
        yield Item("all", band, choices=FAIRFACE_BANDS)


@_form("head_pose/degrees", "head_pose", "axis")
def _pose(labels: Labels, context: Context) -> Iterator[Item]:
    pose = labels.get("head_pose", {})
    for axis in POSE_AXES:
        if axis in pose and context.pose.holds(pose[axis]):
            yield _number(axis, pose[axis], context.pose, context)


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


@_form("head_pose/words", "head_pose", "axis")
def _pose_words(labels: Labels, context: Context) -> Iterator[Item]:
    pose, grid = labels.get("head_pose", {}), context.pose
    for axis in POSE_AXES:
        if axis in pose and grid.holds(pose[axis]):
            value = float(pose[axis])
            degrees = round(value) if context.exact else grid.nearest(value)
            choices = tuple(pose_words(axis, point) for point in grid.points)
            answer = pose_words(axis, degrees)
            yield Item(axis, answer, {"axis": axis}, choices, grid.values, value)


@_form("gender/word", "gender")
def _gender(labels: Labels, context: Context) -> Iterator[Item]:
    if labels.get("gender") in GENDERS:
        yield Item("all", labels["gender"], choices=GENDERS)


@_form("caption/open", "caption")
def _caption(labels: Labels, context: Context) -> Iterator[Item]:
    if context.caption:
        yield Item("all", context.caption)
