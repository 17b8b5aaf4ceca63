"""The first pass of a build over one chunk of rows: checked, cropped, captioned, asked, spooled."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from data_pipeline.captions import telling_caption
from data_pipeline.engine import Chunk, Outcome, Room, Spool
from data_pipeline.faces import crop_record
from data_pipeline.questions.balance import balanced_tasks, count_answers
from data_pipeline.questions.forms import digest
from data_pipeline.questions.question_set import QuestionSet
from data_pipeline.questions.render import render_questions
from data_pipeline.recipe import LoadedRecipe, Ready, Reencoded
from data_pipeline.records import SPLITS, FaceRecord
from data_pipeline.reencode import reencoded
from data_pipeline.sources import Dropped
from data_pipeline.sources.base import unsound
from data_pipeline.tally import Account, LeakCheck
from face_mllm.errors import UserError


class Preparer:
    """Turns a chunk into spooled rows with questions; workers hold nothing else."""

    def __init__(self, loaded: LoadedRecipe, spool: Spool) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.questions = loaded.question_set
        self.held_out = self.recipe.holdout_attributes
        self.balanced = balanced_tasks(self.questions)
        self.spool = spool
        self.asked: dict[tuple[int, str], QuestionSet] = {}

    def __call__(self, chunk: Chunk) -> Outcome:
        """Return what became of a chunk, at once where a stopped build did it before."""
        done = self.spool.outcome(chunk.number)
        return done if done and done.stamp == chunk.stamp else self.prepare(chunk)

    def prepare(self, chunk: Chunk) -> Outcome:
        """Check, render and spool the rows of a chunk."""
        outcome = Outcome(LeakCheck(self.held_out), chunk.stamp, chunk.room)
        records = [self._admit(face, chunk, outcome) for face in self._taken(chunk, outcome)]
        self.spool.write(chunk.number, records, outcome)
        return outcome

    def _taken(self, chunk: Chunk, outcome: Outcome) -> Iterator[FaceRecord]:
        """Yield the faces that pass every check and fall under ``take``."""
        ready, account = self.loaded.sources[chunk.source], outcome.account
        for row in chunk.rows:
            account.read += 1
            if isinstance(row, FaceRecord) and not self._takes(row, ready, account, chunk.room):
                account.not_taken += 1
                continue
            for face in [row] if isinstance(row, Dropped) else self._checked(row, ready):
                if isinstance(face, Dropped):
                    account.drops.add(face)
                elif chunk.room is None or account.kept[face.split] < chunk.room[face.split]:
                    account.add(face)
                    outcome.faces.append((face.id, face.source, face.subject, face.split))
                    yield face

    def _takes(self, record: FaceRecord, ready: Ready, account: Account, room: Room | None) -> bool:
        if record.split not in SPLITS:
            raise UserError(
                f"{record.id}: split {record.split!r} is not one of {SPLITS}", "mend the reader"
            )
        kind, _, amount = ready.entry.take.partition(":")
        if room is not None:  # first:N
            return account.kept[record.split] < room[record.split]
        if kind == "random":
            place = digest("take", self.recipe.seed, record.id) % 1_000_000 / 10_000
            return place < float(amount.rstrip("%"))
        return True

    def _checked(self, record: FaceRecord, ready: Ready) -> Sequence[FaceRecord | Dropped]:
        """Return the faces of one row, or why there are none."""
        if bad := unsound(record):
            return [bad]
        images = self.recipe.images
        if not record.licence:
            record = replace(record, licence=ready.source.licence)
        opened = _with_image(record, images != "link", self.recipe.min_side)
        if isinstance(opened, Dropped):
            return [opened]
        if ready.faces.mode != "none":
            return crop_record(opened, ready.faces)
        if isinstance(images, Reencoded) and not opened.crop:  # a crop has its policy's size
            return [reencoded(opened, images.reencode)]
        return [opened]

    def _admit(self, record: FaceRecord, chunk: Chunk, outcome: Outcome) -> FaceRecord:
        ready, leaks = self.loaded.sources[chunk.source], outcome.leaks
        asked = self._questions(chunk.source, record.source)
        outcome.add_labels(record, asked.active_threshold)
        record = self._captioned(record, ready, asked, leaks)
        tasks = ready.entry.tasks
        qas = render_questions(
            record.labels,
            record.id,
            self.recipe.seed,
            asked,
            self.held_out,
            tasks,
            record.caption,
        )
        own = [qa for qa in record.qa if tasks is None or qa.task in tasks]
        record = replace(record, qa=(*leaks.clean_questions(own), *qas))
        leaks.add(record)
        if record.split == "train":
            count_answers(outcome.answers, qas, self.balanced)
        return record

    def _questions(self, source: int, name: str) -> QuestionSet:
        """Return the question set with what the protocol of the source decides."""
        if (source, name) not in self.asked:
            targets = self.loaded.sources[source].protocol_of(name).targets
            self.asked[source, name] = self.questions.under(targets)
        return self.asked[source, name]

    def _captioned(
        self, record: FaceRecord, ready: Ready, asked: QuestionSet, leaks: LeakCheck
    ) -> FaceRecord:
        if record.caption:
            return replace(record, caption=leaks.clean_caption(record.caption))
        tasks = ready.entry.tasks
        wanted = tasks is None or "caption" in tasks
        if not (wanted and "caption/open" in asked.forms and record.labels):
            return record
        rng = random.Random(digest("caption", self.recipe.seed, record.id))
        short, threshold = asked.captions == "short", asked.active_threshold
        said = telling_caption(record.labels, rng, self.held_out, short=short, threshold=threshold)
        return replace(record, caption=said)


def _with_image(record: FaceRecord, embed: bool, min_side: int) -> FaceRecord | Dropped:
    """Check that the header is that of an image (pixels are not decoded) and embed the bytes."""
    data = record.image
    try:
        if isinstance(data, str):
            path = Path(data)
            data = path.read_bytes() if embed else str(path.resolve())
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            side = min(image.size)
    except FileNotFoundError:
        return Dropped("image file missing", f"{record.id}: {record.image!r}")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Dropped("image unreadable", record.id)
    if side < min_side:
        return Dropped(f"image smaller than {min_side} px", f"{record.id}: {side} px")
    return replace(record, image=data)
