"""Labels to questions: varied wordings for training, the canonical one for scoring.

Every choice hangs on (seed, record key, form, name) alone, so adding a label, a form or a
record never changes the words of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.leaks import canonical_held_out, mentions
from data_pipeline.questions.forms import FORMS, NO, YES_NO, Context, Item, digest
from data_pipeline.questions.question_set import QuestionSet, Wording, load_set
from data_pipeline.questions.unknown import unknown_items
from data_pipeline.records import QA

PLAIN = "{answer}"
ZERO_SHOT = "zero_shot_attribute"
ZERO_SHOT_YES_NO = "zero_shot_attribute_yes_no"


@dataclass(frozen=True)
class ClosedQuestion:
    """One question to score, in its canonical wording.

    Args:
        task: as in QA pairs, or ``zero_shot_attribute`` for held-out attributes.
        name: what is asked about (``AU12``, ``eyeglasses``, ``yaw``; ``all`` for single ones).
        question: the words.
        choices: the answers to compare.
        truth: index of the true choice, or the exact number (years, degrees, intensity)
            when ``values`` is given.
        values: the numbers the choices stand for, None for words.
    """

    task: str
    name: str
    question: str
    choices: tuple[str, ...]
    truth: int | float
    values: tuple[float, ...] | None = None


def render_questions(
    labels: dict[str, Any],
    key: str,
    seed: int,
    question_set: QuestionSet | str = "compact",
    held_out: Iterable[str] = (),
    tasks: Iterable[str] | None = None,
    caption: str = "",
) -> tuple[QA, ...]:
    """Render the training questions of one record, weighted by form and share of the votes.

    Args:
        labels: canonical labels; an absent key gives no question.
        key: record id, which with ``seed`` fixes every choice of words.
        seed: of the recipe.
        question_set: a loaded set or the name of a shipped one.
        held_out: attributes no question, answer or option may mention.
        tasks: ask only these template tasks (``expression``, ``action_unit``, ...), None for all.
        caption: the record's caption, asked for by the caption form when not empty.
    """
    chosen = _resolve(question_set)
    held = canonical_held_out(held_out)
    context = chosen.context(f"{seed}/{key}", caption, held)
    return tuple(
        qa
        for form, wording, items in _items(labels, chosen, context, tasks)
        for item in _thinned(form, items, chosen.no_per_yes, context)
        if (qa := _qa(form, wording, item, chosen, context))
    )


def closed_questions(
    labels: dict[str, Any],
    question_set: QuestionSet | str = "compact",
    held_out: Iterable[str] = (),
    tasks: Iterable[str] | None = None,
) -> list[ClosedQuestion]:
    """Return the questions to score, in canonical wording and fixed order of choices.

    Args:
        labels: canonical labels; an absent key gives no question.
        question_set: the set the model was trained with.
        held_out: attributes asked under task ``zero_shot_attribute``.
        tasks: keep only these tasks (names of ClosedQuestion.task), None for all.
    """
    chosen = _resolve(question_set)
    held = canonical_held_out(held_out)
    wanted = None if tasks is None else set(tasks)
    context = replace(chosen.context(held_out=held), unknown=())  # nothing to score there
    found = [
        question
        for form, wording, items in _items(labels, chosen, context, None)
        for item in items
        if item.choices and (question := _closed(form, wording, item, held))
    ]
    found += _zero_shot(labels, chosen, held)
    return [question for question in found if wanted is None or question.task in wanted]


def _resolve(question_set: QuestionSet | str) -> QuestionSet:
    return load_set(question_set) if isinstance(question_set, str) else question_set


def _items(
    labels: dict[str, Any], chosen: QuestionSet, context: Context, tasks: Iterable[str] | None
) -> Iterator[tuple[str, Wording, list[Item]]]:
    """Yield form, wordings and items of every form that is asked."""
    wanted = None if tasks is None else set(tasks)
    for key in chosen.forms:
        if wanted is None or key.split("/")[0] in wanted:
            form = FORMS[key]
            items = [*form.build(labels, context), *unknown_items(form, labels, context)]
            held_out = context.held_out if form.task == "attribute" else ()
            yield key, chosen.templates[key], [i for i in items if i.name not in held_out]


def _thinned(
    form: str, items: list[Item], no_per_yes: float | None, context: Context
) -> list[Item]:
    """Leave out yes/no questions answered no beyond the set's ratio; chance decides which."""
    if no_per_yes is None:
        return items
    binary = [item for item in items if item.choices[1:] == (NO,)]
    affirmed = {item.name for item in binary if item.answer != NO}
    denied = [item.name for item in binary if item.name not in affirmed]
    limit = max(1, int(no_per_yes * len(affirmed)))
    gone = set(sorted(denied, key=lambda name: digest(context.key, "thin", form, name))[limit:])
    return [item for item in items if not (item.answer == NO and item.name in gone)]


def _clean(wording: Wording, item: Item, held_out: tuple[str, ...]) -> Sequence[str]:
    """Return the wordings that, filled in, mention no held-out attribute, canonical one first."""
    if not held_out:
        return wording.wordings
    filled = ((text, text.format_map(item.fields)) for text in wording.wordings)
    return [text for text, said in filled if mentions(said, held_out) is None]


def _qa(
    form: str, wording: Wording, item: Item, chosen: QuestionSet, context: Context
) -> QA | None:
    texts = _clean(wording, item, context.held_out)
    if not texts or (context.held_out and _gives_away(item, context.held_out)):
        return None
    draw = digest(context.key, form, item.name)
    question = texts[_pick(draw, len(texts), chosen.canonical_share)].format_map(item.fields)
    put = wording.answers[(draw >> 40) % len(wording.answers)]
    answer = item.answer if put == PLAIN else put.format(answer=item.answer)
    choices = item.choices if answer in item.choices else ()
    weight = wording.weight * item.weight
    return QA(FORMS[form].task, item.name, question, answer, choices, weight)


def _gives_away(item: Item, held_out: tuple[str, ...]) -> bool:
    return any(mentions(text, held_out) for text in (item.answer, *item.choices))


def _pick(draw: int, count: int, canonical_share: float) -> int:
    """Map 64 random bits to a wording: 0 with ``canonical_share``, the others alike."""
    share = (draw & 0xFFFFFF) / 0x1000000
    if count == 1 or share < canonical_share:
        return 0
    return 1 + (draw >> 24) % 0xFFFF % (count - 1)


def _closed(
    form: str, wording: Wording, item: Item, held_out: tuple[str, ...]
) -> ClosedQuestion | None:
    texts = _clean(wording, item, held_out)
    if not texts or wording.answers != (PLAIN,):
        return None
    truth: int | float
    truth = item.choices.index(item.answer) if item.truth is None else item.truth
    question = texts[0].format_map(item.fields)
    return ClosedQuestion(FORMS[form].task, item.name, question, item.choices, truth, item.values)


def _zero_shot(
    labels: dict[str, Any], chosen: QuestionSet, held_out: tuple[str, ...]
) -> Iterator[ClosedQuestion]:
    """Held-out attributes in the answer form the set teaches, and in plain yes and no as well."""
    known = labels.get("attributes", {})
    named = "attribute/named" in chosen.forms
    for name in held_out:
        if name in known:
            row, truth = attribute(name), 0 if known[name] else 1
            if named:
                question = f"{row.bare[:1].upper()}{row.bare[1:]}?"
                yield ClosedQuestion(ZERO_SHOT, name, question, (row.bare, NO), truth)
            task = ZERO_SHOT_YES_NO if named else ZERO_SHOT
            yield ClosedQuestion(task, name, row.question, YES_NO, truth)
