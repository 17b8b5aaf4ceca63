"""What is measured per task: metrics by kind of question, and which of them is the headline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data_pipeline.questions import ClosedQuestion

# the order of reports; tasks of later question sets follow in alphabetical order
TASKS = (
    "expression",
    "action_unit",
    "attribute",
    "zero_shot_attribute",
    "zero_shot_attribute_yes_no",
    "age",
    "age_band",
    "head_pose",
    "gender",
)
UNITS = {"age": "years", "head_pose": "degrees"}
LOWER_IS_BETTER = frozenset({"mae", "mae_argmax"})

_METRICS = {
    "action_unit": ("f1", "balanced_accuracy", "accuracy"),
    "attribute": ("balanced_accuracy", "accuracy", "f1"),
    "zero_shot_attribute": ("balanced_accuracy", "accuracy", "f1"),
    "zero_shot_attribute_yes_no": ("balanced_accuracy", "accuracy", "f1"),
    "gender": ("balanced_accuracy", "accuracy"),
}
_BY_KIND = {
    "numeric": ("mae", "mae_argmax"),
    "binary": ("balanced_accuracy", "accuracy", "f1"),
    "classes": ("uar", "war", "f1_macro"),
}


def kind_of(question: ClosedQuestion) -> str:
    """``numeric`` (choices stand for numbers), ``binary`` (something or no) or ``classes``."""
    if question.values:
        return "numeric"
    return "binary" if is_binary(question.choices) else "classes"


def is_binary(choices: Sequence[str]) -> bool:
    """Whether the choices are a positive answer ("yes", "eyeglasses") and then "no"."""
    return len(choices) == 2 and choices[1] == "no"


def metrics_for(task: str, kind: str) -> tuple[str, ...]:
    """Names of the metrics of a task whose questions are of this kind, the headline first.

    ``f1`` (of the positive class) needs yes/no questions; its mean over names is ``f1_macro``.
    """
    if kind == "numeric":
        return _BY_KIND[kind]
    metrics = _METRICS.get(task, _BY_KIND[kind])
    return metrics if kind == "binary" else tuple(name for name in metrics if name != "f1")


def headline(task: str, kind: str) -> str:
    """The metric that stands for the task, on its entry named ``all``."""
    first = metrics_for(task, kind)[0]
    return "f1_macro" if first == "f1" else first


def in_order(tasks: Sequence[str]) -> list[str]:
    """Tasks in the order of reports."""
    known = [task for task in TASKS if task in tasks]
    return known + sorted(set(tasks) - set(TASKS))


def draw(ids: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Positions of at most ``limit`` faces, chosen by hash of id.

    Returns:
        Positions ordered by id, so that nothing depends on the order of the file.
    """
    chosen = list(range(len(ids)))
    if limit is not None and limit < len(ids):
        chosen = sorted(chosen, key=lambda at: rank(ids[at], seed))[:limit]
    return sorted(chosen, key=lambda at: ids[at])


def rank(key: str, seed: int) -> str:
    """A fixed pseudo-random rank of a key."""
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
