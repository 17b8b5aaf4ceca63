"""The second pass: which spooled rows make a shard, and writing one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.engine.spool import Part, Spool
from data_pipeline.questions.balance import WEIGHT_UNIT
from data_pipeline.records import FEATURES, ROWS_PER_GROUP, SPLITS
from face_mllm.outputs import whole_file, write_whole

BYTES_PER_GROUP = 1 << 26
Weighed = Callable[[Part, str, pa.RecordBatch], pa.ListArray]
"""(where the rows lie, split, spooled rows) -> their questions as they are to be written."""


@dataclass(frozen=True)
class Shard:
    """One parquet file of the dataset: its split, its number there, its rows."""

    split: str
    number: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"{self.split}-{self.number:05d}"


@dataclass
class Loss:
    """Training questions of a source, and their weight in parts of ``WEIGHT_UNIT``."""

    questions: int = 0
    weight: int = 0


@dataclass
class Written:
    """What a shard holds; survives a kill as json beside the spooled rows.

    Args:
        stamp: of the chunks its rows are from.
        faces: rows.
        tasks: answers per task.
        loss: of a training shard, by the number of the source.
    """

    stamp: str
    faces: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    loss: dict[int, Loss] = field(default_factory=dict)

    def count(self, source: int, split: str, column: pa.ListArray) -> None:
        """Add the questions of some rows."""
        flat = column.flatten()
        self.faces += len(column)
        for entry in pc.value_counts(flat.field("task")).to_pylist():
            self.tasks[entry["values"]] += entry["counts"]
        if split == "train":
            loss = self.loss.setdefault(source, Loss())
            words = [flat.field(name) for name in ("task", "name", "question")]
            rows = column.value_parent_indices().cast(pa.string())
            loss.questions += pc.count_distinct(
                pc.binary_join_element_wise(rows, *words, "\x1f")
            ).as_py()
            weight = flat.field("weight").to_numpy().astype(float)
            loss.weight += int(np.rint(weight * WEIGHT_UNIT).sum())

    @classmethod
    def from_json(cls, text: str) -> Written:
        """Rebuild what was written."""
        fields = json.loads(text)
        loss = {int(source): Loss(**each) for source, each in fields["loss"].items()}
        return cls(fields["stamp"], fields["faces"], Counter(fields["tasks"]), loss)


def split_parts(kept: Iterable[tuple[int, int, Mapping[str, int]]], split: str) -> Iterator[Part]:
    """Yield where the rows of a split lie in the spooled chunks.

    Args:
        kept: (chunk, source, faces kept per split) of every chunk in order.
        split: the split.
    """
    before = SPLITS[: SPLITS.index(split)]
    for chunk, source, counts in kept:
        start = sum(counts.get(other, 0) for other in before)
        if counts.get(split, 0):
            yield Part(chunk, source, start, start + counts[split])


def plan_shards(parts: Iterable[Part], split: str, rows: int) -> Iterator[Shard]:
    """Cut the rows of a split, in order, into shards of ``rows``."""
    number, taken, space = 0, [], rows
    for part in parts:
        start = part.start
        while start < part.stop:
            stop = min(part.stop, start + space)
            taken.append(Part(part.chunk, part.source, start, stop))
            space -= stop - start
            start = stop
            if not space:
                yield Shard(split, number, tuple(taken))
                number, taken, space = number + 1, [], rows
    if taken:
        yield Shard(split, number, tuple(taken))


def write_shard(shard: Shard, spool: Spool, folder: Path, stamp: str, weighed: Weighed) -> Written:
    """Write one shard, a row group at a time; one that is there whole is left as it is."""
    mark, path = spool.folder / f"{shard.name}.json", folder / f"{shard.name}.parquet"
    if mark.is_file() and path.is_file():
        before = Written.from_json(mark.read_text(encoding="utf-8"))
        if before.stamp == stamp:
            return before
    written = Written(stamp)
    with (
        whole_file(path) as partial,
        pq.ParquetWriter(partial, FEATURES.arrow_schema) as writer,
    ):
        for group in plan_shards(shard.parts, shard.split, ROWS_PER_GROUP):
            batches = []
            for part in group.parts:
                rows = spool.read(part)
                questions = weighed(part, shard.split, rows)
                written.count(part.source, shard.split, questions)
                batches.append(_asking(rows, questions))
            for light in _lighter(batches):
                writer.write_table(pa.Table.from_batches(light).combine_chunks())
    write_whole(mark, json.dumps(written, default=vars))
    return written


def _lighter(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Cut a row group where its pictures are many bytes: its readers hold one in memory."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(one.nbytes for one in group) >= BYTES_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _asking(rows: pa.RecordBatch, questions: pa.ListArray) -> pa.RecordBatch:
    columns = [questions if name == "qa" else rows[name] for name in rows.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
