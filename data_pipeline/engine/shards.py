"""The second pass: which spooled rows make a shard, and writing one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.engine.spool import Part, Spool, questions_of
from data_pipeline.engine.workspace import partial_of, write_whole
from data_pipeline.records import FEATURES, QA, ROWS_PER_GROUP, SPLITS, qa_column, table_of

Chosen = Callable[[int, str, str, tuple[QA, ...]], tuple[QA, ...]]
"""(number of the source, split, record id, all questions) -> the questions to write."""


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


@dataclass(frozen=True)
class Written:
    """What a shard holds: faces, questions, and questions per task."""

    faces: int
    questions: int
    tasks: dict[str, int]


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


def write_shard(shard: Shard, spool: Spool, folder: Path, chosen: Chosen) -> Written:
    """Write one shard, a row group at a time; one that is there whole is left as it is."""
    mark, path = spool.folder / f"{shard.name}.json", folder / f"{shard.name}.parquet"
    if mark.is_file() and path.is_file():
        return Written(**json.loads(mark.read_text(encoding="utf-8")))
    faces, tasks = 0, Counter[str]()
    partial = partial_of(spool.folder / path.name)
    with pq.ParquetWriter(partial, FEATURES.arrow_schema) as writer:
        for group in plan_shards(shard.parts, shard.split, ROWS_PER_GROUP):
            table, questions = _group(group, spool, chosen)
            tasks.update(qa.task for qas in questions for qa in qas)
            faces += len(questions)
            writer.write_table(table)
    os.replace(partial, path)
    written = Written(faces, sum(tasks.values()), dict(tasks))
    write_whole(mark, json.dumps(asdict(written)))
    return written


def _group(group: Shard, spool: Spool, chosen: Chosen) -> tuple[pa.Table, list[tuple[QA, ...]]]:
    tables, questions = [], []
    for part in group.parts:
        table = spool.read(part)
        for key, qas in questions_of(table):
            questions.append(chosen(part.source, group.split, key, qas))
        tables.append(table.drop_columns("qa"))
    whole = pa.concat_tables(tables).combine_chunks()
    columns = {name: whole[name].chunk(0) for name in whole.column_names}
    return table_of(columns | {"qa": qa_column(questions)}), questions
