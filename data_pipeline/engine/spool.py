"""Rendered rows on disk between the two passes of a build, a file a chunk.

Arrow files hold them, mapped into memory: the second pass copies pictures and labels as they are
and touches the questions alone, which stand there as json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_pipeline.engine.outcome import Outcome
from data_pipeline.engine.workspace import partial_of, write_whole
from data_pipeline.records import QA, SPLITS, FaceRecord, plain_columns


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a spooled chunk; ``source`` is the recipe's entry."""

    chunk: int
    source: int
    start: int
    stop: int


@dataclass(frozen=True)
class Spool:
    """The folder of spooled chunks."""

    folder: Path

    def write(self, number: int, records: Sequence[FaceRecord], outcome: Outcome) -> None:
        """Write a chunk, its rows in order of split; the outcome last, for then it is done."""
        ordered = [record for split in SPLITS for record in records if record.split == split]
        columns = plain_columns(ordered)
        columns["qa"] = pa.array([_packed(record.qa) for record in ordered], pa.string())
        table = pa.table(columns)
        path = self._rows(number)
        partial = partial_of(path)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
        os.replace(partial, path)
        write_whole(self._outcome(number), outcome.to_json())

    def outcome(self, number: int) -> Outcome | None:
        """Return what became of a chunk, None when it is not done yet."""
        try:
            return Outcome.from_json(self._outcome(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def read(self, part: Part) -> pa.Table:
        """Return rows of a chunk without copying them from the disk's cache."""
        with pa.memory_map(str(self._rows(part.chunk))) as source:
            return pa.ipc.open_file(source).read_all().slice(part.start, part.stop - part.start)

    def questions(self, part: Part) -> Iterator[tuple[str, tuple[QA, ...]]]:
        """Yield (record id, questions) of rows of a chunk."""
        return questions_of(self.read(part))

    def _rows(self, number: int) -> Path:
        return self.folder / f"{number:07d}.arrow"

    def _outcome(self, number: int) -> Path:
        return self.folder / f"{number:07d}.json"


def questions_of(table: pa.Table) -> Iterator[tuple[str, tuple[QA, ...]]]:
    """Yield (record id, questions) of spooled rows."""
    for key, packed in zip(table["id"].to_pylist(), table["qa"].to_pylist(), strict=True):
        yield key, _unpacked(packed)


def _packed(qas: Sequence[QA]) -> str:
    return json.dumps(
        [(qa.task, qa.name, qa.question, qa.answer, qa.choices, qa.weight) for qa in qas]
    )


def _unpacked(packed: str) -> tuple[QA, ...]:
    return tuple(
        QA(task, name, question, answer, tuple(choices), weight)
        for task, name, question, answer, choices, weight in json.loads(packed)
    )
