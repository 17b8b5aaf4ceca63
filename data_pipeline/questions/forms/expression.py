"""Forms about the expression of the whole face."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.questions.forms.base import (
    YES_NO,
    Context,
    Item,
    Labels,
    form,
    shuffled,
    yes_no,
)


def _expression(labels: Labels, context: Context) -> str | None:
    word = labels.get("expression")
    return word if word in context.classes else None


@form("expression/word", "expression")
def _expression_word(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        yield Item("all", word, choices=context.classes)


@form("expression/sentence", "expression_sentence")
def _expression_sentence(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        yield Item("all", word)


@form("expression/choice", "expression_choice", "options")
def _expression_choice(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        options = shuffled(context.classes, context, "expression")
        yield Item("all", word, {"options": ", ".join(options)}, choices=options)


@form("expression/yes_no", "expression_yes_no", "expression")
def _expression_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    if word := _expression(labels, context):
        for other in context.classes:
            yield Item(other, yes_no(other == word), {"expression": other}, YES_NO)
