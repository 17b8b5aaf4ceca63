"""What every form shares: settings, items, the registry, and seeded choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.labels.expressions import BASIC7

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
        unknown: names that are asked even where they are not labelled.
        soft: train on the shares of annotators' votes instead of on the one expression.
    """

    classes: tuple[str, ...] = BASIC7
    threshold: float = 2.0
    exact: bool = False
    age: Grid = AGE_GRID
    pose: Grid = POSE_GRID
    key: str = ""
    caption: str = ""
    held_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    soft: bool = False


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
        weight: share of the question's loss; a soft label is several answers that sum to 1.
    """

    name: str
    answer: str
    fields: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    truth: float | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Form:
    """A registered form: its function, the task of its questions, and its placeholders."""

    build: Callable[[Labels, Context], Iterator[Item]]
    task: str
    placeholders: frozenset[str]


FORMS: dict[str, Form] = {}


def form(key: str, task: str, *placeholders: str) -> Callable[[Any], Any]:
    """Register a form.

    Args:
        key: ``file/form`` as question sets and ``templates/*.yaml`` write it.
        task: of its questions.
        placeholders: fields its wordings may mention.
    """

    def register(build: Callable[[Labels, Context], Iterator[Item]]) -> Any:
        FORMS[key] = Form(build, task, frozenset(placeholders))
        return build

    return register


def digest(*parts: object) -> int:
    """Return a 64-bit number of the parts, the same on every machine and Python."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def shuffled(words: Sequence[str], context: Context, name: str) -> tuple[str, ...]:
    """Return ``words`` in an order the record's key seeds; as they are without a key."""
    if not context.key:
        return tuple(words)
    return tuple(sorted(words, key=lambda word: digest(context.key, name, word)))


def capitalised(text: str) -> str:
    """Return ``text`` with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def yes_no(flag: bool) -> str:
    """Return the answer to a yes/no question."""
    return YES_NO[0] if flag else YES_NO[1]


@cache
def in_units(number: int, unit: str) -> str:
    """Return a whole number with its unit (``1 year``, ``-14 degrees``), or alone without one."""
    return f"{number} {unit}{'' if abs(number) == 1 else 's'}" if unit else str(number)


def number(name: str, value: float, grid: Grid, context: Context, unit: str = "") -> Item:
    """Return the item of a number: to the unit where the set asks for it, else on the grid."""
    answer = in_units(round(value) if context.exact else grid.nearest(value), unit)
    choices = tuple(in_units(point, unit) for point in grid.points) if unit else grid.words
    return Item(name, answer, {"axis": name}, choices, grid.values, float(value))


def listed(parts: Sequence[str], last: str = " and ") -> str:
    """Return parts as a list in a sentence: ``AU1, AU4 and AU15``."""
    return last.join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def either(options: Sequence[str]) -> str:
    """Return options as one chooses among them: ``a hat, a beard or bangs``."""
    return listed(options, " or ")
