"""The table behind every figure: one row per question about one face, per scorer.

Columns: id, subject, source, protocol, split, task, name, kind, question, choices, values, truth
(index of the choice, or a number), and once scored: scorer, log_likelihoods, prediction, argmax,
valid. All scorers fill the same rows, so model and baselines are measured on the same faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_pipeline.questions import ClosedQuestion, QuestionSet, closed_questions
from data_pipeline.records import FaceRecord, load_split
from eval.tasks import draw, in_order, kind_of
from face_mllm.errors import UserError

GROUP = ["protocol", "task", "name"]
_QUESTION = ["id", "subject", "source", "protocol", "split", "task", "name", "kind"]
_ASKED = ["question", "choices", "values", "truth"]
COLUMNS = [*_QUESTION, *_ASKED]
STORED = [*COLUMNS, "scorer", "log_likelihoods", "prediction", "argmax", "valid"]


class Faces:
    """The faces of one split that are measured, images read one at a time.

    Args:
        root: built dataset folder.
        split: train, val or test.
        limit: at most so many, drawn by hash of id.
        seed: of the draw.

    Raises:
        UserError: when the split does not exist.
    """

    def __init__(self, root: Path | str, split: str, limit: int | None = None, seed: int = 0):
        self.split = split
        rows = load_split(root, split)
        self.total = len(rows)
        self._rows = rows.select(draw(rows["id"][:], limit, seed))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[FaceRecord]:
        return (FaceRecord.from_row(row) for row in self._rows)

    def labels(self) -> Iterator[FaceRecord]:
        """The same faces without their images, which is much quicker to read."""
        bare = self._rows.remove_columns(["image", "qa"])
        blank = {"image": {"bytes": b"", "path": None}, "qa": []}
        return (FaceRecord.from_row({**row, **blank}) for row in bare)

    def pick(self, ids: set[str]) -> Iterator[FaceRecord]:
        """Only the faces of these ids."""
        at = [place for place, face in enumerate(self._rows["id"]) if face in ids]
        return (self[place] for place in at)

    def __getitem__(self, at: int) -> FaceRecord:
        return FaceRecord.from_row(self._rows[at])


@dataclass(frozen=True)
class Asking:
    """What is asked of every face.

    Args:
        question_set: whose canonical wordings are scored.
        sets: source -> the set with the targets its protocol decides, in place of it.
        holdout: attributes no training stage has seen, asked as ``zero_shot_attribute``.
        tasks: only these, None for all.
        protocols: source -> protocol named in the results.
    """

    question_set: QuestionSet | str = "compact"
    holdout: tuple[str, ...] = ()
    tasks: tuple[str, ...] | None = None
    protocols: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, QuestionSet] = field(default_factory=dict)

    def of(self, record: FaceRecord) -> list[ClosedQuestion]:
        """The closed questions about one face; an unknown label gives none."""
        asked = self.sets.get(record.source, self.question_set)
        return closed_questions(record.labels, asked, self.holdout, self.tasks)


def question_table(records: Iterable[FaceRecord], asking: Asking) -> pd.DataFrame:
    """Every closed question about the records, one row each, unscored.

    Returns:
        A frame with :data:`COLUMNS`, faces in the order given.
    """
    rows = []
    for record in records:
        protocol = asking.protocols.get(record.source, "unnamed")
        face = (record.id, record.subject, record.source, protocol, record.split)
        for asked in asking.of(record):
            values = tuple(float(value) for value in asked.values or ())
            named = (asked.task, asked.name, kind_of(asked), asked.question)
            rows.append((*face, *named, asked.choices, values, float(asked.truth)))
    table = pd.DataFrame(rows, columns=COLUMNS)
    _check_choices(table)
    return table


def check_answerable(table: pd.DataFrame, asking: Asking, faces: Faces) -> None:
    """Every task asked for has a labelled face.

    Raises:
        UserError: naming the tasks that have none, and those that do.
    """
    missing = sorted(set(asking.tasks or ()) - set(table["task"]))
    if not len(table) or missing:
        everything = question_table(faces.labels(), replace(asking, tasks=None))
        found = ", ".join(in_order(list(everything["task"].unique()))) or "none"
        wanted = ", ".join(missing) or "any task"
        raise UserError(
            f"no face of split {faces.split} has labels for {wanted}", f"tasks: {found}"
        )


def _check_choices(table: pd.DataFrame) -> None:
    """One name under one protocol has one answer set, or its confusion matrix means nothing."""
    for key, rows in table.groupby(GROUP):
        if rows["choices"].nunique() > 1:
            raise ValueError(f"{key}: several answer sets: {sorted(set(rows['choices']))[:3]}")


def score_rows(
    table: pd.DataFrame, scorer: str, likelihoods: list[NDArray[np.float64]]
) -> pd.DataFrame:
    """Fill in predictions from log-likelihoods of the choices.

    Classes take the most likely choice; numbers the expectation of the choices' values under the
    normalised likelihoods, with the most likely value kept in ``argmax``.

    Args:
        table: [N] rows of :func:`question_table`.
        scorer: name of who scored.
        likelihoods: N arrays [choices], natural log; they need not sum to one.

    Returns:
        The rows with :data:`STORED` columns.
    """
    predicted = [
        _predict(values, logs) for values, logs in zip(table["values"], likelihoods, strict=True)
    ]
    scored = table.copy()
    scored["scorer"] = scorer
    scored["log_likelihoods"] = [np.asarray(logs, dtype=np.float64) for logs in likelihoods]
    scored["prediction"] = np.array([each[0] for each in predicted], dtype=np.float64)
    scored["argmax"] = np.array([each[1] for each in predicted], dtype=np.float64)
    scored["valid"] = True
    return scored[STORED]


def _predict(values: tuple[float, ...], logs: NDArray[np.float64]) -> tuple[float, float]:
    if not np.isfinite(np.max(logs)):
        raise ValueError(f"log-likelihoods {np.asarray(logs)} have no finite maximum")
    best = int(np.argmax(logs))
    if not values:
        return best, best
    weights = np.exp(logs - np.max(logs))
    return float(weights @ np.asarray(values) / weights.sum()), values[best]


def value_rows(
    table: pd.DataFrame,
    scorer: str,
    prediction: NDArray[np.float64],
    valid: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Fill in predictions that come without likelihoods.

    Args:
        table: [N] rows of :func:`question_table`.
        scorer: name of who predicted.
        prediction: [N] class indices or numbers; NaN for a class that could not be read.
        valid: [N] false where the answer could not be read.
    """
    filled = table.copy()
    filled["scorer"] = scorer
    filled["log_likelihoods"] = [np.empty(0)] * len(table)
    filled["prediction"] = np.asarray(prediction, dtype=np.float64)
    filled["argmax"] = filled["prediction"]
    filled["valid"] = True if valid is None else valid
    return filled[STORED]
