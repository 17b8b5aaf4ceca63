"""``data build``: sources to a dataset of faces with questions, weights and a manifest.

Two passes with bounded memory. The first streams every source once, a chunk of rows at a time,
checks each row, renders its questions and spools it; the second weighs the questions with the
counts of the first and writes the shards. ``data_pipeline/engine`` spreads both over processes or
a cluster and lets a killed build go on. The folder appears whole or not at all, and the same
inputs, recipe and seed give byte-identical shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.engine import (
    Chunk,
    Engine,
    Outcome,
    Room,
    Shard,
    Spool,
    build_key,
    chunks_of,
    make_engine,
    plan_shards,
    split_parts,
    workspace,
)
from data_pipeline.labels.attributes import attributes
from data_pipeline.manifest import dataset_card, make_manifest
from data_pipeline.preparing import Preparer
from data_pipeline.questions.balance import (
    AnswerCounts,
    AnswerWeights,
    merge_answers,
    weights_of,
)
from data_pipeline.questions.forms import digest
from data_pipeline.recipe import LoadedRecipe, Ready, load_recipe
from data_pipeline.records import SPLITS
from data_pipeline.sources import fingerprint
from data_pipeline.tables import Progress
from data_pipeline.tally import Account, Identities, LabelTally, LeakCheck, new_tallies
from data_pipeline.weighing import Weigher
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
        self.stamp = ""  # changes with the pictures of any chunk
        self.done = 0
        self.targets: dict[str, dict[str, Any]] = {}  # source, as its records name it

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
        work = Preparer(self.loaded, spool)
        for number, ready in enumerate(self.loaded.sources):
            account = self.accounts[number]
            for chunk, outcome in run.run(work, self._chunks(number, ready)):
                room = self._room(number, ready)
                if not outcome.fits(room):  # handed out before it was known how many are kept
                    outcome = work.prepare(replace(chunk, room=room))
                self._absorb(chunk, outcome)
            if not sum(account.kept.values()):
                raise _nothing_left(ready, account)
        self._held_out_are_known()

    def _held_out_are_known(self) -> None:
        """Refuse to hold out what neither the registry nor any face knows: a slip of the pen."""
        labels = (name for tally in self.tallies.values() for name in tally.words)
        known = {*attributes(), *(name for key, name in labels if key == "attributes")}
        for name in self.recipe.holdout_attributes:
            if name not in known:
                raise UserError(
                    f"holdout_attributes: no face is labelled {name!r}",
                    "write it as `data inspect` lists it, or leave it out",
                )

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
        self._agree(chunk.source, outcome.account.names)
        self.identities.add(outcome.faces)
        self.accounts[chunk.source].merge(outcome.account)
        self.leaks.merge(outcome.leaks)
        self.chunks.append((chunk.number, chunk.source, outcome.account.kept))
        self.stamp = f"{digest(self.stamp, outcome.stamp):016x}"
        for (split, key, name, word), count in outcome.words.items():
            self.tallies[split].add_word(key, name, word, count)
        for split, name, value in outcome.numbers:
            self.tallies[split].add_number(name, value)
        for split, count in outcome.account.kept.items():
            self.tallies[split].faces += count
        merge_answers(self.candidates, outcome.answers)
        self.done += len(outcome.faces)
        self.progress(self.done, 0, "reading")

    def _agree(self, source: int, names: Iterable[str]) -> None:
        """Refuse a source name under two protocols that decide its answers otherwise."""
        for name in names:
            targets = self.loaded.sources[source].protocol_of(name).targets
            if self.targets.setdefault(name, targets) != targets:
                raise UserError(
                    f"source {name!r} is read by protocols that disagree about its answers",
                    "give one of them another `name:`, or read both by one protocol",
                )

    # --- second pass

    def write(self, run: Engine, spool: Spool, folder: Path) -> None:
        """Choose and weigh the questions of the spooled records and write the shards."""
        chances = weights_of(self.candidates)
        weigher = Weigher(self.loaded, spool, folder, self.stamp, chances)
        self.weights = weights_of(self._kept_counts(run, weigher))
        weigher.weights = self.weights
        done = 0
        for shard, written in run.run(weigher, self._shards()):
            self.tallies[shard.split].add_questions(written.tasks)
            for source, loss in written.loss.items():
                self.accounts[source].train_questions += loss.questions
                self.accounts[source].train_weight += loss.weight
            done += written.faces
            self.progress(done, self.done, "writing")
        for split, tally in self.tallies.items():
            tally.people = len(self.identities.people[split])

    def _shards(self) -> Iterator[Shard]:
        for split in SPLITS:
            parts = split_parts(self.chunks, split)
            yield from plan_shards(parts, split, self.recipe.rows_per_shard)

    def _kept_counts(self, run: Engine, weigher: Weigher) -> AnswerCounts:
        """Count the answers that remain after the cap; images stay on disk."""
        if self.recipe.max_questions_per_face is None:
            return self.candidates
        counts: AnswerCounts = {}
        shards = plan_shards(split_parts(self.chunks, "train"), "train", COUNTED_AT_ONCE)
        for _, answers in run.run(weigher.kept_answers, shards):
            merge_answers(counts, answers)
        return counts


def _nothing_left(ready: Ready, account: Account) -> UserError:
    reasons = "; ".join(
        f"{count} x {reason} (e.g. {account.drops.examples[reason][0]})"
        for reason, count in account.drops.counts.most_common(3)
    )
    said = f"{account.read} rows read, none kept" + (f": {reasons}" if reasons else "")
    return UserError(f"{ready.root}: {said}", "check the root, the columns and `take`")
