"""Put every closed question of a face to a scorer in one call, and keep the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.labels.expressions import SYNONYMS
from eval.parse import parse_answer
from eval.table import Faces, score_rows, value_rows
from face_mllm import distributed
from face_mllm.errors import UserError
from face_mllm.progress import Progress


class Scorer(Protocol):
    """What evaluation asks of a model; ``features`` is asked only for the linear probe."""

    def score(
        self, image: Image.Image, questions: list[tuple[str, Sequence[str]]]
    ) -> list[NDArray[np.float64]]:
        """Natural-log likelihood of each choice of each question about one face."""


def silent(done: int, total: int, what: str) -> None:
    """The progress callback that shows nothing."""


def predict_likelihood(
    scorer: Scorer, faces: Faces, table: pd.DataFrame, progress: Progress = silent
) -> pd.DataFrame:
    """Score all questions of each face from one prefill.

    Faces are scored one at a time, so no answer depends on which other faces are measured, nor
    on how many processes of one launch share them.

    Args:
        scorer: the model.
        faces: where the images come from.
        table: unscored rows, of :func:`eval.table.question_table`.

    Returns:
        The rows scored, scorer ``likelihood``.
    """
    likelihoods: list[NDArray[np.float64]] = [np.empty(0)] * len(table)
    places = table.groupby("id").indices

    def score(place: int) -> dict[int, NDArray[np.float64]]:
        record = faces[place]
        rows = places.get(record.id, ())
        found: dict[int, NDArray[np.float64]] = {}
        if len(rows):
            asked = [(table["question"].iat[at], table["choices"].iat[at]) for at in rows]
            answers = scorer.score(record.open_image(), asked)
            for at, logs in zip(rows, answers, strict=True):
                found[at] = _checked(logs, table["choices"].iat[at], record.id)
        progress(place + 1, len(faces), "scoring")
        return found

    for found in distributed.spread(len(faces), score):
        for at, logs in found.items():
            likelihoods[at] = logs
    return score_rows(table, "likelihood", likelihoods)


def _checked(logs: Any, choices: Sequence[str], face: str) -> NDArray[np.float64]:
    array = np.asarray(logs, dtype=np.float64)
    if array.shape != (len(choices),):
        raise ValueError(f"{face}: {array.shape} likelihoods for {len(choices)} choices")
    if np.isnan(array).any() or not np.isfinite(array.max()):
        raise UserError(
            f"{face}: the model's likelihoods are not finite",
            "its weights are broken or overflow in this dtype; train again or use float32",
        )
    return array


def predict_generate(
    scorer: Any,
    faces: Faces,
    table: pd.DataFrame,
    fallback: dict[tuple[str, str], float],
    progress: Progress = silent,
) -> pd.DataFrame:
    """Read greedy answers; what cannot be read counts as wrong and is reported as a rate.

    Args:
        scorer: has ``generate(image, question) -> str``, greedy.
        fallback: (task, name) -> number scored in place of an unreadable number: the training mean.

    Returns:
        The rows, scorer ``generate``.
    """
    prediction = np.full(len(table), np.nan)
    places = table.groupby("id").indices

    def answer(place: int) -> dict[int, float]:
        record, found = faces[place], {}
        image = record.open_image()
        for at in places.get(record.id, ()):
            row = table.iloc[at]
            said = scorer.generate(image, row["question"])
            read = parse_answer(said, row["choices"], row["values"], SYNONYMS)
            found[at] = np.nan if read is None else read
        progress(place + 1, len(faces), "generating")
        return found

    for found in distributed.spread(len(faces), answer):
        for at, read in found.items():
            prediction[at] = read
    valid = ~np.isnan(prediction)
    spare = [fallback.get(key, np.nan) for key in zip(table["task"], table["name"], strict=True)]
    numeric = (table["kind"] == "numeric").to_numpy()
    prediction = np.where(valid | ~numeric, prediction, np.array(spare, dtype=np.float64))
    return value_rows(table, "generate", prediction, valid)
