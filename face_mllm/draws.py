"""Which of a face's questions a visit asks: by task, and each one before any comes again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.questions.balance import by_question
from data_pipeline.records import QA

GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread most evenly
ANY = ""  # the one group of all questions where no task has a share


def draw_questions(
    qas: Sequence[QA],
    shares: Mapping[str, float],
    limit: int,
    own: np.random.Generator,
    turn: int = 0,
) -> list[list[QA]]:
    """Questions of one visit, each with all its answers: those of a soft label stay together.

    A task gets its share of the visit, at most what it has, so a face with 40 attributes and one
    age still gets asked its age. Within a task the visits take turns: a share of k questions out
    of n has asked each of them after about n / k turns, and none twice before.

    Args:
        qas: all questions of the record.
        shares: task -> share; empty means every question alike.
        limit: most questions in a row.
        own: the face's, the same at each of its visits.
        turn: how often the face was visited before.
    """
    groups: dict[str, list[list[QA]]] = {}
    for answers in by_question(
        qa for qa in qas if not shares or shares.get(qa.task, 0) > 0
    ).values():
        groups.setdefault(answers[0].task if shares else ANY, []).append(answers)
    sizes = {task: len(questions) for task, questions in groups.items()}
    if sum(sizes.values()) <= limit:
        return [answers for questions in groups.values() for answers in questions]
    wanted = quotas(sizes, shares or {ANY: 1.0}, limit)
    asked_before, asked_now = counts(list(wanted.values()), own.random(), turn)
    picked = []
    for task, before, now in zip(wanted, asked_before, asked_now, strict=True):
        order = own.permutation(sizes[task])
        picked += [groups[task][order[(before + at) % sizes[task]]] for at in range(now)]
    return picked


def quotas(sizes: Mapping[str, int], shares: Mapping[str, float], limit: int) -> dict[str, float]:
    """Questions of each task a visit asks on average: by share, and no more than there are.

    Args:
        sizes: task -> its questions; more than ``limit`` in all.
        shares: task -> share, above 0.
        limit: their sum.
    """
    found: dict[str, float] = {}
    open_, room = list(sizes), float(limit)
    while open_:
        whole = sum(shares[task] for task in open_)
        full = [task for task in open_ if room * shares[task] / whole >= sizes[task]]
        for task in full or open_:
            found[task] = float(sizes[task]) if full else room * shares[task] / whole
        if not full:
            break
        room -= sum(sizes[task] for task in full)
        open_ = [task for task in open_ if task not in full]
    return {task: found[task] for task in sizes}


def counts(wanted: Sequence[float], start: float, turn: int) -> tuple[list[int], list[int]]:
    """Whole numbers that follow quotas: each visit's sum is theirs, and so are the means of many.

    Args:
        wanted: quota of each task, with a whole sum.
        start: in [0, 1), of the face.
        turn: number of the visit.

    Returns:
        Of each task, the questions before this turn and those of this turn.
    """
    offsets = (start + GOLDEN * np.arange(turn + 1)) % 1
    borders = np.round(np.cumsum([0.0, *wanted]), 9)  # what rounding left must not cost one
    each = np.diff(np.floor(borders + offsets[:, None]), axis=1).astype(np.int64)
    return each[:-1].sum(0).tolist(), each[-1].tolist()
