"""Forms about attributes: one at a time, or several to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from data_pipeline.labels.attributes import attribute, groups
from data_pipeline.questions.forms.base import (
    NO,
    YES_NO,
    Context,
    Item,
    Labels,
    capitalised,
    either,
    form,
    shuffled,
    yes_no,
)

MOST_COMPARED = 3  # questions a face gets of each form that sets attributes side by side


@form("attribute/yes_no", "attribute", "question", "phrase", "word")
def _attribute_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    for name, value in sorted(labels.get("attributes", {}).items()):
        yield _asked(name, bool(value))


@cache
def _asked(name: str, present: bool) -> Item:
    row = attribute(name)
    word = capitalised(row.phrase)
    fields = {"question": row.question, "phrase": row.phrase, "word": word}
    return Item(name, yes_no(present), fields, YES_NO)


@form("attribute/named", "attribute", "question", "phrase", "word")
def _attribute_named(labels: Labels, context: Context) -> Iterator[Item]:
    """The attribute's own words if present, else no."""
    for name, value in sorted(labels.get("attributes", {}).items()):
        yield _named(name, bool(value))


@cache
def _named(name: str, present: bool) -> Item:
    row = attribute(name)
    fields = {"question": row.question, "phrase": row.phrase, "word": capitalised(row.short)}
    return Item(name, row.short if present else NO, fields, (row.short, NO))


@form("attribute/choice", "attribute_choice", "group", "options")
def _attribute_choice(labels: Labels, context: Context) -> Iterator[Item]:
    known = labels.get("attributes", {})
    for group, members in groups().items():
        asked = [row for row in members if row.name in known and row.name not in context.held_out]
        true = [row.value for row in asked if known[row.name]]
        if len(asked) >= 2 and len(true) == 1:  # several or no true colour: nothing to choose
            options = shuffled([row.value for row in asked], context, group)
            fields = {"group": group.replace("_", " "), "options": ", ".join(options)}
            yield Item(group, true[0], fields, options)


def _one_of(labels: Labels, context: Context, fewest: int, most: int) -> Iterator[Item]:
    """One attribute the face has among others it has not, shuffled.

    Training only: the options differ from face to face, so no score could be kept of them.
    """
    known = labels.get("attributes", {})
    asked = sorted(known.keys() - set(context.held_out))
    absent = [name for name in asked if not known[name]]
    if not context.key or len(absent) < fewest:
        return
    present = shuffled([name for name in asked if known[name]], context, f"present {most}")
    for name in present[:MOST_COMPARED]:
        others = shuffled(absent, context, f"beside {name} {most}")[:most]
        phrases = [attribute(one).phrase for one in (name, *others)]
        options = shuffled(phrases, context, f"order {name} {most}")
        yield Item(name, attribute(name).phrase, {"options": either(options)}, options)


@form("attribute/compare", "attribute_compare", "options")
def _attribute_compare(labels: Labels, context: Context) -> Iterator[Item]:
    """Two attributes of which the face has one."""
    yield from _one_of(labels, context, 1, 1)


@form("attribute/options", "attribute_options", "options")
def _attribute_options(labels: Labels, context: Context) -> Iterator[Item]:
    """Three or four attributes of which the face has one."""
    yield from _one_of(labels, context, 2, 3)
