"""The journal: every answer on disk before the next question, so that a kill loses none.

One JSON line per face and annotator, appended and synced. What is in it is never asked again;
a line the kill tore is cut off when the run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data_pipeline.annotate.questions import Answer
from face_mllm.errors import UserError
from face_mllm.outputs import write_whole

ANSWER, REFUSAL, MALFORMED, UNREADABLE = "answer", "refusal", "malformed", "unreadable"
UNANSWERED = "unanswered"  # time-outs and server errors: asked again by the next run


@dataclass(frozen=True)
class Entry:
    """What one annotator said of one face.

    Args:
        id: the record's.
        annotator: 0 or 1.
        kind: answer, refusal, malformed, unreadable or unanswered.
        answer: of kind ``answer``.
        reason: why there is none.
        raw: what was said instead, without keys and pictures.
    """

    id: str
    annotator: int
    kind: str
    answer: Answer = field(default_factory=dict)
    reason: str = ""
    raw: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


@dataclass
class Usage:
    """What one annotator's answers took."""

    kinds: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def add(self, entry: Entry) -> None:
        """Book one entry."""
        self.kinds[entry.kind] += 1
        self.tokens_in += entry.tokens_in
        self.tokens_out += entry.tokens_out
        self.cost += entry.cost


class Journal:
    """Append-only answers of one job; use through :func:`open_journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.usage: dict[int, Usage] = {}
        self._places: dict[tuple[int, str], tuple[int, bool]] = {}
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._recover()

    def add(self, entry: Entry) -> None:
        """Write one entry and wait until the disk has it."""
        line = json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._book(entry, place)

    def settled(self, annotator: int, key: str) -> bool:
        """True when this face needs not be asked again."""
        return self._places.get((annotator, key), (0, False))[1]

    def entry(self, annotator: int, key: str) -> Entry | None:
        """Return the latest entry of a face, None when it was never asked."""
        place = self._places.get((annotator, key))
        if place is None:
            return None
        with self._lock:
            self._file.seek(place[0])
            return Entry(**json.loads(self._file.readline()))

    def used(self, annotator: int) -> Usage:
        """Return what an annotator's answers took so far, earlier runs included."""
        return self.usage.get(annotator, Usage())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _book(self, entry: Entry, place: int) -> None:
        self._places[entry.annotator, entry.id] = (place, entry.kind != UNANSWERED)
        self.usage.setdefault(entry.annotator, Usage()).add(entry)

    def _recover(self) -> None:
        """Read what is there; a torn last line is cut off."""
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._book(Entry(**json.loads(line)), place)
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.path}:{number}: not an entry of this journal", "remove that line"
                ) from error
            place += len(line)
        self._file.truncate(place)


def journal_folder(out: Path) -> Path:
    """Return where the journal of a job lies: beside the dataset it will become."""
    return out.with_name(f"{out.name}.journal")


@contextmanager
def held_folder(out: Path) -> Iterator[Path]:
    """Make and hold the journal folder of ``out`` against a second run.

    It is removed again when nothing worth keeping came into it.

    Raises:
        UserError: when another run holds it.
    """
    folder = journal_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{out}: another run is annotating into it", "wait for it") from error
    try:
        yield folder
    finally:
        if not _worth_keeping(folder):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _worth_keeping(folder: Path) -> bool:
    journal = folder / "journal.jsonl"
    return (folder / "input").exists() or (journal.exists() and journal.stat().st_size > 0)


@contextmanager
def open_journal(folder: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Open the journal of a job, new or begun.

    Args:
        folder: from :func:`held_folder`.
        settings: what the answers depend on; a begun job must have the same.

    Raises:
        UserError: when the job was begun with other settings.
    """
    journal = Journal(folder / "journal.jsonl")
    try:
        _same_settings(folder / "settings.json", settings, begun=bool(journal.usage))
        yield journal
    finally:
        journal.close()


def _same_settings(path: Path, settings: Mapping[str, Any], begun: bool) -> None:
    if not begun or not path.exists():
        write_whole(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid json", f"remove {path.parent} to start anew") from error
    wanted = json.loads(json.dumps(settings))
    changed = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
    if changed:
        raise UserError(
            f"{path.parent} was begun with other settings: {', '.join(sorted(changed))} differ",
            "run the command it was begun with, choose another --out, or remove that folder",
        )


def remove_folder(out: Path) -> None:
    """Remove the journal of a finished job."""
    shutil.rmtree(journal_folder(out), ignore_errors=True)
