"""The second pass of a build over one shard: questions chosen and weighed, a column at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.engine import Part, Shard, Spool, Written, write_shard
from data_pipeline.questions.balance import (
    AnswerCounts,
    AnswerWeights,
    balanced_tasks,
    count_answers,
    question_of,
    select,
)
from data_pipeline.recipe import LoadedRecipe
from data_pipeline.records import list_column, qa_rows

SEPARATOR = "\x1f"


@dataclass
class Weigher:
    """Writes shards with the questions chosen and weighed; workers hold nothing else.

    Args:
        loaded: the recipe.
        spool: rows of the first pass.
        folder: of the dataset.
        stamp: of all chunks; a shard that a stopped build wrote under another one is not kept.
        chances: balance weights over all candidates, by which questions are drawn.
        weights: balance weights over the questions that are kept.
    """

    loaded: LoadedRecipe
    spool: Spool
    folder: Path
    stamp: str
    chances: AnswerWeights
    weights: AnswerWeights = field(default_factory=dict)

    def __call__(self, shard: Shard) -> Written:
        """Write a shard, or read what it holds where a stopped build wrote it."""
        return write_shard(shard, self.spool, self.folder, self.stamp, self.weighed)

    def kept_answers(self, shard: Shard) -> AnswerCounts:
        """Count the answers to the questions that remain after the cap."""
        counts: AnswerCounts = {}
        balanced = balanced_tasks(self.loaded.question_set)
        for part in shard.parts:
            for qas in qa_rows(self._chosen(self.spool.read(part))):
                count_answers(counts, qas, balanced)
        return counts

    def weighed(self, part: Part, split: str, rows: pa.RecordBatch) -> pa.ListArray:
        """Return the questions to write for some spooled rows.

        Outside training all are kept, each as heavy as its form and its votes make it.
        """
        if split != "train":
            return rows["qa"]
        return weigh(
            self._chosen(rows), self.weights, self.loaded.sources[part.source].entry.weight
        )

    def _chosen(self, rows: pa.RecordBatch) -> pa.ListArray:
        recipe, column = self.loaded.recipe, rows["qa"]
        limit = recipe.max_questions_per_face
        if limit is None:
            return column
        keep: list[bool] = []
        for key, qas in zip(rows["id"].to_pylist(), qa_rows(column), strict=True):
            kept = set(map(question_of, select(qas, limit, self.chances, f"{recipe.seed}/{key}")))
            keep.extend(question_of(qa) in kept for qa in qas)
        ends = np.concatenate([[0], np.cumsum(keep)])[_offsets(column)]
        return list_column(ends, column.flatten().filter(pa.array(keep, pa.bool_())), column.type)


def weigh(column: pa.ListArray, weights: AnswerWeights, factor: float = 1.0) -> pa.ListArray:
    """Multiply each question's weight by its balance weight and by ``factor``.

    Args:
        column: the ``qa`` column of some rows.
        weights: balance weights; an answer without one counts as it is.
        factor: of the source.
    """
    flat = column.flatten()
    words = [flat.field(name) for name in ("task", "name", "answer")]
    said = pc.binary_join_element_wise(*words, SEPARATOR).dictionary_encode()
    known = np.array([_weight_of(key, weights) for key in said.dictionary.to_pylist()], float)
    weight = flat.field("weight").to_numpy().astype(float) * factor * known[said.indices.to_numpy()]
    fields = list(flat.type)
    arrays = [flat.field(one.name) if one.name != "weight" else weight for one in fields]
    arrays = [pa.array(a, pa.float32()) if isinstance(a, np.ndarray) else a for a in arrays]
    struct = pa.StructArray.from_arrays(arrays, fields=fields)
    return list_column(_offsets(column), struct, column.type)


def _weight_of(said: str, weights: AnswerWeights) -> float:
    task, name, answer = said.split(SEPARATOR, 2)
    return weights.get((task, name), {}).get(answer, 1.0)


def _offsets(column: pa.ListArray) -> np.ndarray:
    """Where the lists of a column, or of a part of one, start and end in its flat values."""
    ends = column.offsets.to_numpy()
    return ends - ends[0]
