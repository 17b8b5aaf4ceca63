"""``data build``: sources to a dataset of faces with questions, weights and a manifest.

Two passes with bounded memory. The first streams every source once, checks each row, renders
its questions and spools it; the second weighs the questions with the counts of the first and
writes the shards. The folder appears whole or not at all, and the same inputs, recipe and seed
give byte-identical shards.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.captions import telling_caption
from data_pipeline.faces import crop_record
from data_pipeline.labels.validate import validate_labels
from data_pipeline.manifest import dataset_card, make_manifest
from data_pipeline.questions.balance import (
    AnswerCounts,
    AnswerWeights,
    balanced_tasks,
    count_answers,
    select,
    weigh,
    weights_of,
)
from data_pipeline.questions.forms import digest
from data_pipeline.questions.question_set import QuestionSet
from data_pipeline.questions.render import render_questions
from data_pipeline.recipe import LoadedRecipe, Ready, load_recipe
from data_pipeline.records import (
    QA,
    DatasetWriter,
    FaceRecord,
    iter_records,
    iter_rows,
    whole_folder,
)
from data_pipeline.sources import Dropped
from data_pipeline.tables import Progress
from data_pipeline.tally import Account, Identities, LabelTally, LeakCheck, new_tallies
from face_mllm.errors import UserError


def build(
    recipe_path: str | Path,
    out: str | Path,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a dataset from a recipe.

    Args:
        recipe_path: YAML file or name of a shipped recipe.
        out: folder to make; it must not hold files yet.
        overrides: ``key=value`` changes to the recipe.
        progress: called with (faces done, faces in all or 0, what is going on).

    Returns:
        The manifest, as written to ``manifest.json``.

    Raises:
        UserError: bad recipe or input, no faces left, an identity in two splits, or a text that
            mentions a held-out attribute. Nothing is left behind.
    """
    job = _Job(load_recipe(recipe_path, overrides), progress or (lambda *_: None))
    out = Path(out)
    with whole_folder(out) as folder:
        spool = folder / "spool"
        spool.mkdir()
        job.spool(spool)
        job.write(spool, folder)
        shutil.rmtree(spool)
        manifest = make_manifest(job.loaded, job.accounts, job.tallies, job.leaks, job.weights)
        text = json.dumps(manifest, indent=1, sort_keys=True)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
        (folder / "README.md").write_text(dataset_card(out.name, manifest), encoding="utf-8")
    return manifest


class _Job:
    def __init__(self, loaded: LoadedRecipe, progress: Progress) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.questions = loaded.question_set
        self.progress = progress
        self.held_out = self.recipe.holdout_attributes
        self.accounts = [Account() for _ in loaded.sources]
        self.tallies: dict[str, LabelTally] = new_tallies()
        self.identities = Identities()
        self.leaks = LeakCheck(self.held_out)
        self.balanced = balanced_tasks(self.questions)
        self.candidates: AnswerCounts = {}
        self.weights: AnswerWeights = {}
        self.done = 0
        self._asked: dict[str, tuple[dict[str, Any], QuestionSet]] = {}

    # --- first pass

    def spool(self, folder: Path) -> None:
        """Read, check, render and spool every record of every source."""
        for number, ready in enumerate(self.loaded.sources):
            writer = DatasetWriter(folder / f"{number:03d}", self.recipe.rows_per_shard)
            writer.folder.mkdir()
            for record in self._taken(ready, self.accounts[number]):
                self._admit(record, ready, writer)
            writer.finish()
            if not sum(writer.counts.values()):
                raise _nothing_left(ready, self.accounts[number])

    def _taken(self, ready: Ready, account: Account) -> Iterator[FaceRecord]:
        """Yield the records that pass every check and fall under ``take``."""
        for row in ready.source.read_rows(ready.root, ready.options, ready.protocol):
            account.read += 1
            if isinstance(row, FaceRecord) and not self._takes(row, ready, account):
                account.not_taken += 1
                continue
            for checked in [row] if isinstance(row, Dropped) else self._checked(row, ready):
                if isinstance(checked, Dropped):
                    account.drops.add(checked)
                    continue
                if not checked.licence:
                    checked = replace(checked, licence=ready.source.licence)
                account.add(checked)
                yield checked

    def _takes(self, record: FaceRecord, ready: Ready, account: Account) -> bool:
        kind, _, amount = ready.entry.take.partition(":")
        if kind == "first":
            return account.kept[record.split] < int(amount)
        if kind == "random":
            place = digest("take", self.recipe.seed, record.id) % 1_000_000 / 10_000
            return place < float(amount.rstrip("%"))
        return True

    def _checked(self, record: FaceRecord, ready: Ready) -> Sequence[FaceRecord | Dropped]:
        """Return the faces of one row, or why there are none."""
        problems = validate_labels(record.labels)
        if problems:
            return [Dropped(f"labels: {problems[0]}", record.id)]
        opened = _with_image(record, self.recipe.images == "embed", self.recipe.min_side)
        if isinstance(opened, Dropped) or ready.faces.mode == "none":
            return [opened]
        return crop_record(opened, ready.faces)

    def _admit(self, record: FaceRecord, ready: Ready, writer: DatasetWriter) -> None:
        asked = self._questions(ready, record.source)
        self.identities.add(record)
        self.tallies[record.split].add(record, asked.active_threshold)
        record = self._captioned(record, ready, asked)
        qas = render_questions(
            record.labels,
            record.id,
            self.recipe.seed,
            asked,
            self.held_out,
            ready.entry.tasks,
            record.caption,
        )
        tasks = ready.entry.tasks
        own = [qa for qa in record.qa if tasks is None or qa.task in tasks]
        record = replace(record, qa=(*self.leaks.clean_questions(own), *qas))
        self.leaks.add(record)
        if record.split == "train":
            count_answers(self.candidates, qas, self.balanced)
        writer.add(record)
        self.done += 1
        self.progress(self.done, 0, "reading")

    def _questions(self, ready: Ready, name: str) -> QuestionSet:
        """Return the question set with what the protocol of the source decides.

        Raises:
            UserError: one source name under two protocols that decide otherwise.
        """
        targets = ready.protocol_of(name).targets
        if name not in self._asked:
            self._asked[name] = targets, self.questions.under(targets)
        known, asked = self._asked[name]
        if known != targets:
            raise UserError(
                f"source {name!r} is read by protocols that disagree about its answers",
                "give one of them another `name:`, or read both by one protocol",
            )
        return asked

    def _captioned(self, record: FaceRecord, ready: Ready, asked: QuestionSet) -> FaceRecord:
        if record.caption:
            return replace(record, caption=self.leaks.clean_caption(record.caption))
        tasks = ready.entry.tasks
        wanted = tasks is None or "caption" in tasks
        if not (wanted and "caption/open" in asked.forms and record.labels):
            return record
        rng = random.Random(digest("caption", self.recipe.seed, record.id))
        short, threshold = asked.captions == "short", asked.active_threshold
        said = telling_caption(record.labels, rng, self.held_out, short=short, threshold=threshold)
        return replace(record, caption=said)

    # --- second pass

    def write(self, spool: Path, folder: Path) -> None:
        """Choose and weigh the questions of the spooled records and write the shards."""
        chances = weights_of(self.candidates)
        self.weights = weights_of(self._kept_counts(spool, chances))
        writer = DatasetWriter(folder, self.recipe.rows_per_shard)
        total, done = self.done, 0
        for number, ready in enumerate(self.loaded.sources):
            for record in iter_records(spool / f"{number:03d}"):
                finished = self._weighed(record, ready, chances)
                self.tallies[record.split].add_questions(finished)
                self.accounts[number].add_questions(finished)
                writer.add(finished)
                done += 1
                self.progress(done, total, "writing")
        writer.finish()

    def _kept_counts(self, spool: Path, chances: AnswerWeights) -> AnswerCounts:
        """Count the answers that remain after the cap; images stay on disk."""
        if self.recipe.max_questions_per_face is None:
            return self.candidates
        counts: AnswerCounts = {}
        for part in sorted(spool.iterdir()):
            for row in iter_rows(part, "train", ["id", "qa"]):
                count_answers(counts, self._chosen(row["id"], _qas(row), chances), self.balanced)
        return counts

    def _chosen(self, key: str, qas: tuple[QA, ...], chances: AnswerWeights) -> tuple[QA, ...]:
        limit = self.recipe.max_questions_per_face
        return select(qas, limit, chances, f"{self.recipe.seed}/{key}")

    def _weighed(self, record: FaceRecord, ready: Ready, chances: AnswerWeights) -> FaceRecord:
        if record.split != "train":
            return record  # every question as heavy as its form and its votes make it
        chosen = self._chosen(record.id, record.qa, chances)
        return replace(record, qa=weigh(chosen, self.weights, ready.entry.weight))


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


def _qas(row: dict[str, Any]) -> tuple[QA, ...]:
    return tuple(QA(**{**qa, "choices": tuple(qa["choices"])}) for qa in row["qa"])


def _nothing_left(ready: Ready, account: Account) -> UserError:
    reasons = "; ".join(
        f"{count} x {reason} (e.g. {account.drops.examples[reason][0]})"
        for reason, count in account.drops.counts.most_common(3)
    )
    said = f"{account.read} rows read, none kept" + (f": {reasons}" if reasons else "")
    return UserError(f"{ready.root}: {said}", "check the root, the columns and `take`")
