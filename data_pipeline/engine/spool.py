"""Rendered rows on disk between the two passes of a build, a file a chunk.

Arrow files hold them, mapped into memory: the second pass copies all columns as they are and
touches the questions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_pipeline.engine.outcome import Outcome
from data_pipeline.records import SPLITS, FaceRecord, batch_of
from face_mllm.outputs import whole_file, write_whole


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
        rows = batch_of(ordered)
        path = self._rows(number)
        with (
            whole_file(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, rows.schema) as file,
        ):
            file.write_batch(rows)
        write_whole(self._outcome(number), outcome.to_json())

    def outcome(self, number: int) -> Outcome | None:
        """Return what became of a chunk, None when it is not done yet."""
        try:
            return Outcome.from_json(self._outcome(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def read(self, part: Part) -> pa.RecordBatch:
        """Return rows of a chunk without copying them from the disk's cache."""
        with pa.memory_map(str(self._rows(part.chunk))) as source:
            rows = pa.ipc.open_file(source).get_batch(0)
        return rows.slice(part.start, part.stop - part.start)

    def _rows(self, number: int) -> Path:
        return self.folder / f"{number:07d}.arrow"

    def _outcome(self, number: int) -> Path:
        return self.folder / f"{number:07d}.json"
