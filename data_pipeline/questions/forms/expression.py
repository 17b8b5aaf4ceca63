"""Forms about the expression of the whole face."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.labels.action_units import au_number, is_active
from data_pipeline.labels.expressions import ADJECTIVES, COMPOUND_EXPRESSIONS, EXPRESSIONS
from data_pipeline.labels.prototypes import core_units, typical_expression
from data_pipeline.questions.forms.action_unit import with_names
from data_pipeline.questions.forms.base import (
    YES_NO,
    Context,
    Item,
    Labels,
    form,
    listed,
    shuffled,
    yes_no,
)


def _expression(labels: Labels, context: Context) -> str | None:
    word = labels.get("expression")
    return word if word in context.classes else None


def _answers(labels: Labels, context: Context) -> Iterator[tuple[str, float]]:
    """Yield each answer with its weight: the expression, or the votes by their shares.

    Votes are for training; what is scored has one true answer.
    """
    votes = labels.get("expression_votes", {}) if context.soft and context.key else {}
    shares = {word: votes[word] for word in context.classes if votes.get(word)}
    total = sum(shares.values())
    if shares:
        yield from ((word, share / total) for word, share in shares.items())
    elif word := _expression(labels, context):
        yield word, 1.0


@form("expression/word", "expression")
def _expression_word(labels: Labels, context: Context) -> Iterator[Item]:
    for word, weight in _answers(labels, context):
        yield Item("all", word, choices=context.classes, weight=weight)


@form("expression/sentence", "expression_sentence")
def _expression_sentence(labels: Labels, context: Context) -> Iterator[Item]:
    for word, weight in _answers(labels, context):
        yield Item("all", word, weight=weight)


@form("expression/choice", "expression_choice", "options")
def _expression_choice(labels: Labels, context: Context) -> Iterator[Item]:
    for word, weight in _answers(labels, context):
        options = shuffled(context.classes, context, "expression")
        yield Item("all", word, {"options": ", ".join(options)}, options, weight=weight)


@form("expression/yes_no", "expression_yes_no", "expression")
def _expression_yes_no(labels: Labels, context: Context) -> Iterator[Item]:
    """Of votes, each word is affirmed and denied by its share."""
    if shares := dict(_answers(labels, context)):
        for word in context.classes:
            share = shares.get(word, 0.0)
            for flag, weight in ((True, share), (False, 1 - share)):
                if weight > 0:
                    yield Item(word, yes_no(flag), {"expression": word}, YES_NO, weight=weight)


SLIGHT, PART, MOST, CLEAR = 0.1, 0.2, 0.5, 0.85  # shares of the votes


def votes_in_words(votes: dict[str, float]) -> str:
    """Return annotators' votes as ``mostly neutral, partly sad``; empty when none counts."""
    ranked = sorted(votes.items(), key=lambda vote: (-vote[1], EXPRESSIONS.index(vote[0])))
    said = []
    for place, (name, share) in enumerate(ranked):
        if share >= SLIGHT:
            degree = "partly" if share >= PART else "slightly"
            if place == 0 and share >= MOST:
                degree = "clearly" if share >= CLEAR else "mostly"
            said.append(f"{degree} {ADJECTIVES[name]}")
    return ", ".join(said)


@form("expression/votes", "expression_votes")
def _expression_votes(labels: Labels, context: Context) -> Iterator[Item]:
    """What several annotators saw, as a mixture."""
    if said := votes_in_words(labels.get("expression_votes", {})):
        yield Item("all", said)


@form("expression/compound", "compound_expression")
def _compound(labels: Labels, context: Context) -> Iterator[Item]:
    word = labels.get("compound_expression")
    if word in COMPOUND_EXPRESSIONS:
        yield Item("all", word, choices=COMPOUND_EXPRESSIONS)


@form("expression/compound_choice", "compound_expression_choice", "options")
def _compound_choice(labels: Labels, context: Context) -> Iterator[Item]:
    word = labels.get("compound_expression")
    if word in COMPOUND_EXPRESSIONS:
        options = shuffled(COMPOUND_EXPRESSIONS, context, "compound")
        yield Item("all", word, {"options": ", ".join(options)}, options)


@form("expression/rationale", "expression_rationale")
def _rationale(labels: Labels, context: Context) -> Iterator[Item]:
    """From units to expression; silent where the label says another one or the units are mixed."""
    units = labels.get("action_units", {})
    active = {label: is_active(value, context.threshold) for label, value in units.items()}
    found = typical_expression(active)
    if found in context.classes and labels.get("expression", found) == found:
        core = sorted(core_units(found) & active.keys(), key=au_number)
        named = with_names(core, context.held_out)
        verb = "is" if len(named) == 1 else "are"
        yield Item("all", f"{listed(named)} {verb} active: typical of {found}.")
