"""``data build``: sources to a dataset of faces with questions, weights and a manifest.

Two passes with bounded memory. The first streams every source once, a chunk of rows at a time,
checks each row, renders its questions and spools it; the second weighs the questions with the
counts of the first and writes the shards. ``data_pipeline/engine`` spreads both over processes or
a cluster and lets a killed build go on. The folder appears whole or not at all, and the same
inputs, recipe and seed give byte-identical shards.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.captions import caption as write_caption
from data_pipeline.engine import (
    Chunk,
    Engine,
    Outcome,
    Room,
    Shard,
    Spool,
    Written,
    build_key,
    chunks_of,
    make_engine,
    plan_shards,
    split_parts,
    workspace,
    write_shard,
)
from data_pipeline.faces import crop_record
from data_pipeline.labels.validate import validate_labels
from data_pipeline.manifest import dataset_card, make_manifest
from data_pipeline.questions.balance import (
    AnswerCounts,
    AnswerWeights,
    balanced_tasks,
    count_answers,
    merge_answers,
    select,
    weigh,
    weights_of,
)
from data_pipeline.questions.forms import digest
from data_pipeline.questions.render import render_questions
from data_pipeline.recipe import LoadedRecipe, Ready, Reencoded, load_recipe
from data_pipeline.records import QA, SPLITS, FaceRecord
from data_pipeline.reencode import reencoded
from data_pipeline.sources import Dropped, fingerprint
from data_pipeline.tables import Progress
from data_pipeline.tally import Account, Identities, LabelTally, LeakCheck, new_tallies
from face_mllm.errors import UserError

COUNTED_AT_ONCE = 4096  # faces a worker counts the kept answers of


def build(
    recipe_path: str | Path,
    out: str | Path,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
    workers: int | None = 1,
    engine: str = "local",
) -> dict[str, Any]:
    """Build a dataset from a recipe.

    A build that was killed leaves ``.NAME.partial`` beside ``out``; the same call again goes on
    with it and ends in the same bytes. Bytes depend on neither ``workers`` nor ``engine``.

    Args:
        recipe_path: YAML file or name of a shipped recipe.
        out: folder to make; it must not hold files yet.
        overrides: ``key=value`` changes to the recipe.
        progress: called with (faces done, faces in all or 0, what is going on).
        workers: processes that open pictures, render questions and write; None for all CPUs.
        engine: ``local``, or ``ray`` for a cluster (Ray Data; extra ``ray``).

    Returns:
        The manifest, as written to ``manifest.json``.

    Raises:
        UserError: bad recipe or input, no faces left, an identity in two splits, or a text that
            mentions a held-out attribute. Nothing is left behind.
    """
    chosen = make_engine(engine, workers)
    job = _Job(load_recipe(recipe_path, overrides), progress or (lambda *_: None))
    out = Path(out)
    with workspace(out, job.key()) as place, chosen as run:
        job.spool(run, Spool(place.spool))
        job.write(run, Spool(place.spool), place.data)
        manifest = make_manifest(job.loaded, job.accounts, job.tallies, job.leaks, job.weights)
        text = json.dumps(manifest, indent=1, sort_keys=True)
        (place.data / "manifest.json").write_text(text + "\n", encoding="utf-8")
        (place.data / "README.md").write_text(dataset_card(out.name, manifest), encoding="utf-8")
    return manifest


class _Job:
    """The whole build, seen from the process that reads the labels and counts."""

    def __init__(self, loaded: LoadedRecipe, progress: Progress) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.questions = loaded.question_set
        self.progress = progress
        self.accounts = [Account(fingerprint(ready.root)) for ready in loaded.sources]
        self.tallies: dict[str, LabelTally] = new_tallies()
        self.identities = Identities()
        self.leaks = LeakCheck(self.recipe.holdout_attributes)
        self.candidates: AnswerCounts = {}
        self.weights: AnswerWeights = {}
        self.chunks: list[tuple[int, int, Mapping[str, int]]] = []  # number, source, kept
        self.done = 0

    def key(self) -> str:
        """Hash what decides the bytes of this build."""
        return build_key(
            {
                "recipe": self.recipe.model_dump(mode="json"),
                "roots": [str(ready.root.resolve()) for ready in self.loaded.sources],
                "questions": self.questions.model_dump(mode="json"),
                "fingerprints": [account.fingerprint for account in self.accounts],
            }
        )

    # --- first pass

    def spool(self, run: Engine, spool: Spool) -> None:
        """Read, check, render and spool every record of every source, a chunk at a time."""
        work = _Preparer(self.loaded, spool)
        for number, ready in enumerate(self.loaded.sources):
            account = self.accounts[number]
            for chunk, outcome in run.run(work, self._chunks(number, ready)):
                room = self._room(number, ready)
                if not outcome.fits(room):  # handed out before it was known how many are kept
                    outcome = work.prepare(replace(chunk, room=room))
                self._absorb(chunk, outcome)
            if not sum(account.kept.values()):
                raise _nothing_left(ready, account)

    def _chunks(self, number: int, ready: Ready) -> Iterator[Chunk]:
        rows = ready.source.read_rows(ready.root, ready.options, ready.protocol)
        for chunk in chunks_of(rows, len(self.chunks), number):
            yield replace(chunk, room=self._room(number, ready))

    def _room(self, number: int, ready: Ready) -> Room | None:
        """How many more faces of each split ``take: first:N`` leaves room for."""
        kind, _, amount = ready.entry.take.partition(":")
        if kind != "first":
            return None
        kept = self.accounts[number].kept
        return {split: max(0, int(amount) - kept[split]) for split in SPLITS}

    def _absorb(self, chunk: Chunk, outcome: Outcome) -> None:
        """Take the counts of a chunk into those of the build."""
        self.identities.add(outcome.faces)
        self.accounts[chunk.source].merge(outcome.account)
        self.leaks.merge(outcome.leaks)
        self.chunks.append((chunk.number, chunk.source, outcome.account.kept))
        for split, key, name, word, count in outcome.words:
            self.tallies[split].add_word(key, name, word, count)
        for split, name, value in outcome.numbers:
            self.tallies[split].add_number(name, value)
        for split, count in outcome.account.kept.items():
            self.tallies[split].faces += count
        merge_answers(self.candidates, outcome.answers)
        self.done += len(outcome.faces)
        self.progress(self.done, 0, "reading")

    # --- second pass

    def write(self, run: Engine, spool: Spool, folder: Path) -> None:
        """Choose and weigh the questions of the spooled records and write the shards."""
        chances = weights_of(self.candidates)
        weigher = _Weigher(self.loaded, spool, folder, chances)
        self.weights = weights_of(self._kept_counts(run, weigher))
        weigher.weights = self.weights
        done = 0
        for shard, written in run.run(weigher, self._shards()):
            self.tallies[shard.split].add_questions(written.tasks)
            done += written.faces
            self.progress(done, self.done, "writing")
        for split, tally in self.tallies.items():
            tally.subjects = len(self.identities.people[split])

    def _shards(self) -> Iterator[Shard]:
        for split in SPLITS:
            parts = split_parts(self.chunks, split)
            yield from plan_shards(parts, split, self.recipe.rows_per_shard)

    def _kept_counts(self, run: Engine, weigher: _Weigher) -> AnswerCounts:
        """Count the answers that remain after the cap; images stay on disk."""
        if self.recipe.max_questions_per_face is None:
            return self.candidates
        counts: AnswerCounts = {}
        shards = plan_shards(split_parts(self.chunks, "train"), "train", COUNTED_AT_ONCE)
        for _, answers in run.run(weigher.kept_answers, shards):
            merge_answers(counts, answers)
        return counts


class _Preparer:
    """The first pass over one chunk; workers hold nothing else."""

    def __init__(self, loaded: LoadedRecipe, spool: Spool) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.questions = loaded.question_set
        self.held_out = self.recipe.holdout_attributes
        self.balanced = balanced_tasks(self.questions)
        self.spool = spool

    def __call__(self, chunk: Chunk) -> Outcome:
        """Return what became of a chunk, at once where a stopped build did it before."""
        return self.spool.outcome(chunk.number) or self.prepare(chunk)

    def prepare(self, chunk: Chunk) -> Outcome:
        """Check, render and spool the rows of a chunk."""
        ready = self.loaded.sources[chunk.source]
        outcome = Outcome(LeakCheck(self.held_out), chunk.room)
        taken = self._taken(chunk, ready, outcome)
        records = [self._admit(record, ready, outcome) for record in taken]
        outcome.count(records)
        self.spool.write(chunk.number, records, outcome)
        return outcome

    def _taken(self, chunk: Chunk, ready: Ready, outcome: Outcome) -> Iterator[FaceRecord]:
        """Yield the faces that pass every check and fall under ``take``."""
        account = outcome.account
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
            raise UserError(f"{record.id}: split {record.split!r} is not one of {SPLITS}")
        kind, _, amount = ready.entry.take.partition(":")
        if room is not None:  # first:N
            return account.kept[record.split] < room[record.split]
        if kind == "random":
            place = digest("take", self.recipe.seed, record.id) % 1_000_000 / 10_000
            return place < float(amount.rstrip("%"))
        return True

    def _checked(self, record: FaceRecord, ready: Ready) -> Sequence[FaceRecord | Dropped]:
        """Return the faces of one row, or why there are none."""
        problems = validate_labels(record.labels)
        if problems:
            return [Dropped(f"labels: {problems[0]}", record.id)]
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

    def _admit(self, record: FaceRecord, ready: Ready, outcome: Outcome) -> FaceRecord:
        leaks = outcome.leaks
        record = self._captioned(record, ready, leaks)
        qas = render_questions(
            record.labels,
            record.id,
            self.recipe.seed,
            self.questions,
            self.held_out,
            ready.entry.tasks,
            record.caption,
        )
        tasks = ready.entry.tasks
        own = [qa for qa in record.qa if tasks is None or qa.task in tasks]
        record = replace(record, qa=(*leaks.clean_questions(own), *qas))
        leaks.add(record)
        if record.split == "train":
            count_answers(outcome.answers, qas, self.balanced)
        return record

    def _captioned(self, record: FaceRecord, ready: Ready, leaks: LeakCheck) -> FaceRecord:
        if record.caption:
            return replace(record, caption=leaks.clean_caption(record.caption))
        tasks = ready.entry.tasks
        asked = tasks is None or "caption" in tasks
        if not (asked and "caption/open" in self.questions.forms and record.labels):
            return record
        short = self.questions.captions == "short"
        rng = random.Random(digest("caption", self.recipe.seed, record.id))
        return replace(
            record, caption=write_caption(record.labels, rng, self.held_out, short=short)
        )


@dataclass
class _Weigher:
    """The second pass over one shard; workers hold nothing else."""

    loaded: LoadedRecipe
    spool: Spool
    folder: Path
    chances: AnswerWeights
    weights: AnswerWeights = field(default_factory=dict)

    def __call__(self, shard: Shard) -> Written:
        """Write a shard with the questions chosen and weighed."""
        return write_shard(shard, self.spool, self.folder, self._weighed)

    def kept_answers(self, shard: Shard) -> AnswerCounts:
        """Count the answers to the questions that remain after the cap."""
        counts: AnswerCounts = {}
        balanced = balanced_tasks(self.loaded.question_set)
        for part in shard.parts:
            for key, qas in self.spool.questions(part):
                count_answers(counts, self._chosen(key, qas), balanced)
        return counts

    def _chosen(self, key: str, qas: tuple[QA, ...]) -> tuple[QA, ...]:
        recipe = self.loaded.recipe
        return select(qas, recipe.max_questions_per_face, self.chances, f"{recipe.seed}/{key}")

    def _weighed(self, source: int, split: str, key: str, qas: tuple[QA, ...]) -> tuple[QA, ...]:
        if split != "train":
            return tuple(qa.weighing(1.0) for qa in qas)
        factor = self.loaded.sources[source].entry.weight
        return weigh(self._chosen(key, qas), self.weights, factor)


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


def _nothing_left(ready: Ready, account: Account) -> UserError:
    reasons = "; ".join(
        f"{count} x {reason} (e.g. {account.drops.examples[reason][0]})"
        for reason, count in account.drops.counts.most_common(3)
    )
    said = f"{account.read} rows read, none kept" + (f": {reasons}" if reasons else "")
    return UserError(f"{ready.root}: {said}", "check the root, the columns and `take`")
