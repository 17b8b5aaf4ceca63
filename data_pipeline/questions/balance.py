"""Balance control: equal total weight per answer, and a fair choice when questions are capped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline.questions.forms import FORMS, digest
from data_pipeline.questions.question_set import QuestionSet
from data_pipeline.records import QA

WEIGHT_CAP = 4.0
AnswerCounts = dict[tuple[str, str], Counter[str]]
AnswerWeights = dict[tuple[str, str], dict[str, float]]


def balance_weights(counts: Mapping[str, int], cap: float = WEIGHT_CAP) -> dict[str, float]:
    """Weights that give every answer the same total, none above ``cap``, mean 1.

    With n_a questions answered ``a``, k answers and N = sum n_a, the weight is N / (k n_a).
    Where that exceeds the cap it is the cap, and the other answers share the rest equally, so
    the mean over questions stays 1.

    Args:
        counts: answer -> number of questions, over the training split.
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
    """Add the answers of the balanced tasks to ``counts``, by (task, name)."""
    for qa in qas:
        if qa.task in tasks:
            counts.setdefault((qa.task, qa.name), Counter())[qa.answer] += 1


def merge_answers(counts: AnswerCounts, later: AnswerCounts) -> None:
    """Add the counts of other records to ``counts``."""
    for key, answers in later.items():
        counts.setdefault(key, Counter()).update(answers)


def weights_of(counts: AnswerCounts) -> AnswerWeights:
    """Return the balance weights of every (task, name)."""
    return {key: balance_weights(answers) for key, answers in sorted(counts.items())}


def weigh(qas: Sequence[QA], weights: AnswerWeights, factor: float = 1.0) -> tuple[QA, ...]:
    """Multiply each question's weight by its balance weight and by ``factor``."""
    return tuple(
        qa.weighing(qa.weight * factor * weights.get((qa.task, qa.name), {}).get(qa.answer, 1))
        for qa in qas
    )


def select(
    qas: Sequence[QA], limit: int | None, weights: AnswerWeights, key: str
) -> tuple[QA, ...]:
    """Keep at most ``limit`` questions of one face, in their order.

    Weighted sampling without replacement (Efraimidis and Spirakis 2006): every task has the same
    chance in total, and within a task rare answers are likelier by their balance weight.

    Args:
        qas: all questions of the record.
        limit: most questions kept; None keeps all.
        weights: from the counts over all candidates.
        key: seed and record id.
    """
    if limit is None or len(qas) <= limit:
        return tuple(qas)
    per_task = Counter(qa.task for qa in qas)

    def rank(place: int) -> float:
        qa = qas[place]
        chance = weights.get((qa.task, qa.name), {}).get(qa.answer, 1.0) / per_task[qa.task]
        uniform = (digest("select", key, qa.task, qa.name) + 1) / 2.0**64
        return math.log(min(uniform, 1.0)) / chance

    kept = sorted(sorted(range(len(qas)), key=rank, reverse=True)[:limit])
    return tuple(qas[place] for place in kept)
