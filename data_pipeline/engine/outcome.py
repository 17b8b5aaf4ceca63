"""Chunks of rows, and what became of each: all the manifest needs, without the pictures."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.questions.balance import AnswerCounts
from data_pipeline.questions.forms import digest
from data_pipeline.records import FaceRecord
from data_pipeline.sources import Dropped
from data_pipeline.tally import Account, Drops, Face, LeakCheck, label_numbers, label_words

ROWS_PER_CHUNK = 128
BYTES_PER_CHUNK = 1 << 25  # of pictures, for a worker holds those of a chunk
Room = Mapping[str, int]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one source.

    Args:
        number: of the chunk in the whole build.
        source: number of the recipe's entry.
        rows: as the reader gave them.
        stamp: changes with the files of its pictures.
        room: split -> most faces that may be kept; None for no limit.
    """

    number: int
    source: int
    rows: tuple[FaceRecord | Dropped, ...]
    stamp: str
    room: Room | None = None


def chunks_of(rows: Iterable[FaceRecord | Dropped], first: int, source: int) -> Iterator[Chunk]:
    """Cut the rows of a source into chunks numbered from ``first``."""
    number, weight = first, 0
    part: list[FaceRecord | Dropped] = []
    files: list[tuple[str, int, int]] = []
    for row in rows:
        part.append(row)
        files.append(_file_of(row))
        weight += files[-1][1]
        if len(part) == ROWS_PER_CHUNK or weight >= BYTES_PER_CHUNK:
            yield Chunk(number, source, tuple(part), f"{digest(*files):016x}")
            number, weight, part, files = number + 1, 0, [], []
    if part:
        yield Chunk(number, source, tuple(part), f"{digest(*files):016x}")


def _file_of(row: FaceRecord | Dropped) -> tuple[str, int, int]:
    """Path, size and time of a row's picture; of one inside the row its size alone."""
    if isinstance(row, Dropped):
        return "", 0, 0
    if isinstance(row.image, bytes):
        return "", len(row.image), 0
    try:
        found = os.stat(row.image)
    except OSError:
        return row.image, 0, 0
    return row.image, found.st_size, found.st_mtime_ns


@dataclass
class Outcome:
    """What became of a chunk; survives a kill as json beside the spooled rows.

    Args:
        leaks: the check of its texts.
        stamp: that of the chunk.
        room: that of the chunk.
        account: rows read, kept and dropped.
        faces: every kept face, in order.
        words: (split, label key, name, word) of the countable labels.
        numbers: (split, name, value) of the numeric labels, in order.
        answers: of the balanced training questions.
    """

    leaks: LeakCheck
    stamp: str
    room: Room | None = None
    account: Account = field(default_factory=Account)
    faces: list[Face] = field(default_factory=list)
    words: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    numbers: list[tuple[str, str, float]] = field(default_factory=list)
    answers: AnswerCounts = field(default_factory=dict)

    def add_labels(self, record: FaceRecord, threshold: float) -> None:
        """Count the labels of a kept face, units as active from ``threshold``."""
        split = record.split
        self.words.update((split, *word) for word in label_words(record.labels, threshold))
        for name, value in label_numbers(record.labels):
            self.numbers.append((split, name, float(value)))

    def fits(self, room: Room | None) -> bool:
        """Tell whether it is what the chunk gives with this much room."""
        if room is None or self.room is None:
            return room is self.room
        kept = self.account.kept
        return all(kept[split] < room[split] or self.room[split] == room[split] for split in room)

    def to_json(self) -> str:
        """Return all of it as text."""
        counted = {name: list(getattr(self, name).items()) for name in ("words", "answers")}
        fields = {**vars(self), **counted}  # json has no keys of several words
        return json.dumps(fields, default=vars)

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Rebuild what :meth:`to_json` wrote."""
        fields = json.loads(text)
        fields["leaks"] = LeakCheck(**fields["leaks"])
        fields["account"] = _account(fields["account"])
        fields["words"] = Counter({tuple(key): count for key, count in fields["words"]})
        fields["answers"] = {tuple(key): Counter(counts) for key, counts in fields["answers"]}
        return cls(**fields)


def _account(fields: dict[str, Any]) -> Account:
    drops = fields.pop("drops")
    found = Drops(Counter(drops["counts"]), defaultdict(list, drops["examples"]))
    counts: dict[str, Any] = {
        name: Counter(value) if isinstance(value, dict) else value for name, value in fields.items()
    }
    return Account(**counts, drops=found)
