"""Balance control: equal total weight per answer, and a fair choice when questions are capped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline.questions.forms import FORMS, digest
from data_pipeline.questions.question_set import QuestionSet
from data_pipeline.records import QA

WEIGHT_CAP = 4.0
WEIGHT_UNIT = 1 << 20
"""Weights are counted in whole parts of 2**-20, so that sums do not depend on their order."""

AnswerCounts = dict[tuple[str, str], Counter[str]]
AnswerWeights = dict[tuple[str, str], dict[str, float]]


def balance_weights(counts: Mapping[str, int], cap: float = WEIGHT_CAP) -> dict[str, float]:
    """Weights that give every answer the same total, none above ``cap``, mean 1.

    With n_a questions answered ``a``, k answers and N = sum n_a, the weight is N / (k n_a).
    Where that exceeds the cap it is the cap, and the other answers share the rest equally, so
    the mean over questions stays 1.

    Args:
        counts: answer -> number of questions over the training split, or a multiple of it.
        cap: largest weight.
    """
    free = {answer: n for answer, n in counts.items() if n > 0}
    total = float(sum(free.values()))
    weights: dict[str, float] = {}
    while free:
        share = total / len(free)
        over = [answer for answer, n in free.items() if share / n > cap]
        if not over:
            return weights | {answer: share / n for answer, n in free.items()}
        for answer in over:
            total -= cap * free.pop(answer)
            weights[answer] = cap
    return weights


def balanced_tasks(question_set: QuestionSet) -> frozenset[str]:
    """Return the QA tasks whose form asks for balance."""
    return frozenset(
        FORMS[form].task for form, words in question_set.templates.items() if words.balance
    )


def count_answers(counts: AnswerCounts, qas: Iterable[QA], tasks: frozenset[str]) -> None:
    """Add the weights of the balanced tasks' answers to ``counts``, by (task, name)."""
    for qa in qas:
        if qa.task in tasks:
            key = qa.task, qa.name
            if key not in counts:
                counts[key] = Counter()
            counts[key][qa.answer] += round(qa.weight * WEIGHT_UNIT)


def merge_answers(counts: AnswerCounts, later: AnswerCounts) -> None:
    """Add the counts of other records to ``counts``."""
    for key, answers in later.items():
        counts.setdefault(key, Counter()).update(answers)


def weights_of(counts: AnswerCounts) -> AnswerWeights:
    """Return the balance weights of every (task, name)."""
    return {key: balance_weights(answers) for key, answers in sorted(counts.items())}


def question_of(qa: QA) -> tuple[str, str, str]:
    """Return what tells the questions of a face apart; answers of a soft label share it."""
    return qa.task, qa.name, qa.question


def by_question(qas: Iterable[QA]) -> dict[tuple[str, str, str], list[QA]]:
    """Group answers by (task, name, question): a soft label answers its question several times."""
    asked: dict[tuple[str, str, str], list[QA]] = {}
    for qa in qas:
        asked.setdefault(question_of(qa), []).append(qa)
    return asked


def select(
    qas: Sequence[QA], limit: int | None, weights: AnswerWeights, key: str
) -> tuple[QA, ...]:
    """Keep at most ``limit`` questions of one face, in their order.

    Weighted sampling without replacement (Efraimidis and Spirakis 2006): every task has the same
    chance in total, and within a task rare answers are likelier by their balance weight. The
    answers of a soft label are one question and stay together.

    Args:
        qas: all questions of the record.
        limit: most questions kept; None keeps all.
        weights: from the counts over all candidates.
        key: seed and record id.
    """
    asked = by_question(qas)
    if limit is None or len(asked) <= limit:
        return tuple(qas)
    per_task = Counter(task for task, _, _ in asked)
    ranks: dict[tuple[str, str, str], float] = {}
    named: set[tuple[str, str]] = set()
    for question, answers in asked.items():
        # several questions of one name, such as those of a conversation, draw by their words
        drawn = question if question[:2] in named else question[:2]
        named.add(question[:2])
        chance = _chance(answers, weights) / per_task[question[0]]
        uniform = (digest("select", key, *drawn) + 1) / 2.0**64
        ranks[question] = math.log(min(uniform, 1.0)) / chance
    kept = set(sorted(ranks, key=ranks.__getitem__, reverse=True)[:limit])
    return tuple(qa for qa in qas if question_of(qa) in kept)


def _chance(answers: Sequence[QA], weights: AnswerWeights) -> float:
    """The balance weight of a question's answers, by their shares."""
    known = weights.get((answers[0].task, answers[0].name), {})
    total = sum(qa.weight for qa in answers)
    return sum(known.get(qa.answer, 1.0) * (qa.weight / total) for qa in answers)
