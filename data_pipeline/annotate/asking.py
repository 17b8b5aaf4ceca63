"""Puts the questions: a few faces in flight, every outcome into the journal at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from PIL import Image

from data_pipeline.annotate.journal import (
    ANSWER,
    MALFORMED,
    REFUSAL,
    UNANSWERED,
    UNREADABLE,
    Entry,
    Journal,
)
from data_pipeline.annotate.pace import EndingError, Stop
from data_pipeline.annotate.questions import MalformedError, Questions, RefusalError
from data_pipeline.annotate.reply import MAX_RAW, Annotator, Reply, scrubbed
from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError

FAILURES_IN_A_ROW = 8
"""So many faces without an answer one after the other: the endpoint is down, not the faces bad."""


class Asker:
    """Asks one annotator about many faces.

    Args:
        annotator: who.
        number: its place, 0 or 1.
        label: its name.
        questions: what.
        journal: where outcomes go.
        stop: ends the run.
        key: its key, kept out of everything written.
    """

    def __init__(
        self,
        annotator: Annotator,
        number: int,
        label: str,
        questions: Questions,
        journal: Journal,
        stop: Stop,
        key: str = "",
    ) -> None:
        self.annotator = annotator
        self.number = number
        self.label = label
        self.questions = questions
        self.journal = journal
        self.stop = stop
        self.key = key
        self._failures = 0
        self._lock = threading.Lock()

    def ask_all(self, faces: Iterable[FaceRecord], done: Callable[[int], None]) -> None:
        """Ask about every face that is not settled yet.

        Args:
            faces: read as they are asked, so memory stays bounded.
            done: told after each call how many faces it settled.

        Raises:
            UserError: the endpoint is down or refuses, or the budget is used up; what was
                answered is in the journal.
        """
        todo = (face for face in faces if not self.journal.settled(self.number, face.id))
        window = 2 * self.annotator.workers
        with ThreadPoolExecutor(self.annotator.workers) as pool:
            pending: set[Future[int]] = set()
            try:
                for batch in _batches(todo, self.annotator.batch):
                    pending.add(pool.submit(self.ask_batch, batch))
                    if len(pending) >= window:
                        pending = _collect(pending, done)
                while pending:
                    pending = _collect(pending, done)
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)  # answers under way are still written
                raise

    def ask_batch(self, batch: list[FaceRecord]) -> int:
        """Ask about some faces and write what comes of each; return how many."""
        open_faces: list[tuple[Entry, Image.Image]] = []
        for face in batch:
            blank = Entry(face.id, self.number, UNANSWERED)
            try:
                open_faces.append((blank, face.open_image()))
            except UserError as error:
                self.journal.add(replace(blank, kind=UNREADABLE, reason=error.message))
        for left in reversed(range(self.annotator.tries)):
            open_faces = self._try(open_faces, last=not left) if open_faces else []
        return len(batch)

    def _try(
        self, faces: list[tuple[Entry, Image.Image]], last: bool
    ) -> list[tuple[Entry, Image.Image]]:
        """Ask once; return the faces worth another try, with what they have cost so far."""
        try:
            replies = self.annotator.ask([picture for _, picture in faces])
        except (EndingError, UserError):
            for entry, _ in faces:
                if entry.cost or entry.tokens_in:  # an earlier try was paid for
                    self.journal.add(replace(entry, kind=UNANSWERED))
            raise
        again = []
        for (before, picture), reply in zip(faces, replies, strict=True):
            entry = self._judge(_charged(before, reply), reply)
            if entry.kind == MALFORMED and not last:
                again.append((entry, picture))
            else:
                self.journal.add(entry)
                self._watch(entry)
        return again

    def _judge(self, entry: Entry, reply: Reply) -> Entry:
        """Read a reply: an answer, a refusal, malformed, or nothing."""
        text = scrubbed(reply.text, self.key)
        if reply.failure:
            return replace(entry, kind=UNANSWERED, reason=reply.failure)
        kind, reason = REFUSAL, reply.refusal
        if not reply.refusal:
            try:
                answer = self.questions.read(text, reply.cut)
                return replace(entry, kind=ANSWER, answer=answer, reason="", raw="")
            except RefusalError as error:
                reason = str(error)
            except MalformedError as error:
                kind, reason = MALFORMED, str(error)
        return replace(entry, kind=kind, reason=reason, raw=text[:MAX_RAW])

    def _watch(self, entry: Entry) -> None:
        with self._lock:
            self._failures = self._failures + 1 if entry.kind == UNANSWERED else 0
            failures = self._failures
        if failures >= FAILURES_IN_A_ROW:
            raise UserError(
                f"{self.label}: {failures} faces in a row got no answer ({entry.reason})",
                "mend it and run the same command again: answers are kept",
            )


def _charged(entry: Entry, reply: Reply) -> Entry:
    return replace(
        entry,
        tokens_in=entry.tokens_in + reply.tokens_in,
        tokens_out=entry.tokens_out + reply.tokens_out,
        cost=entry.cost + reply.cost,
    )


def _batches(faces: Iterator[FaceRecord], size: int) -> Iterator[list[FaceRecord]]:
    while batch := list(itertools.islice(faces, size)):
        yield batch


def _collect(pending: set[Future[int]], done: Callable[[int], None]) -> set[Future[int]]:
    """Wait for the next call to end; an error of a call is raised here."""
    finished, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        done(future.result())
    return left
