"""The val split as late fusion reads it: faces whose expression both can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from data_pipeline.records import read_manifest
from eval.run import asking_for
from eval.table import Faces, question_table
from face_mllm.errors import UserError

TASK = "expression"


def val_questions(
    data: Path, classes: Sequence[str], limit: int | None = None
) -> tuple[Faces, pd.DataFrame]:
    """Val faces and the questions about their expressions; no picture is read.

    Args:
        data: built dataset.
        classes: the expert's.
        limit: at most so many faces, drawn by hash of id.

    Raises:
        UserError: no val split, or no face in it whose expression both can name.
    """
    if not any(data.glob("val-*.parquet")):
        raise UserError(
            f"{data}: no val split to fit late fusion on",
            "build the data with one, or set expert.fusion: false",
        )
    faces = Faces(data, "val", limit, 0)
    table = question_table(faces.labels(), asking_for(read_manifest(data), [TASK]))
    pairs = zip(table["choices"], table["truth"], strict=True)
    if not any(_both_name(choices, int(truth), classes) for choices, truth in pairs):
        raise UserError(
            f"{data}: late fusion: no val face with an expression that MLLM and expert both name "
            f"(the expert knows {', '.join(classes)})",
            "build the data with such expressions in its val split, or set expert.fusion: false",
        )
    return faces, table


def _both_name(choices: Sequence[str], truth: int, classes: Sequence[str]) -> bool:
    return choices[truth] in classes and len(set(choices) & set(classes)) > 1
