"""The multimodal LLM beside the experts: trained on the source alone, measured on every set.

Stages 1 and 2 are the same for all; stage 3 goes on from them once for each way an expert may take
part in training (``alone``, ``token``, ``text``), with the same steps, the same draw of questions
and the same seed. Late fusion costs no training: it is fitted on the source's val split for each of
the three. Every step writes its folder whole, so a run that was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from domains import once, test_sets
from systems import MASK_FER, Bench, mask_fer_config
from table import EXPERT, FUSED, MODEL, from_eval, write_answers

from data_pipeline.build import build
from data_pipeline.records import read_manifest
from eval.run import evaluate
from face_mllm.experts.joined.fuse import fuse
from face_mllm.experts.joined.out_of_fold import out_of_fold
from face_mllm.experts.mask_fer.expert import INFO_FILE as MASK_FER_FILE
from face_mllm.experts.mask_fer.train import train_mask_fer
from face_mllm.hardware import release_memory
from face_mllm.progress import Progress
from face_mllm.train import main as train

WAYS = ("alone", "token", "text")
SETS = {"val": ("source", "val")}  # table's set -> dataset and split; the others are test splits
MIX = {"expression": 0.34, "action_unit": 0.66}  # a face has one expression, many AUs


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    Args:
        steps: optimiser steps of the three stages.
        faces: of a step in stage 3.
        questions: about a face in stages 2 and 3, at most.
        folds: experts behind the verdicts on training faces.
        limit: faces of a set that are asked, drawn by hash of id; None for all.
    """

    steps: Sequence[int] = (20, 60, 80)
    faces: int = 6
    questions: int = 4
    folds: int = 3
    limit: int | None = None


@dataclass(frozen=True)
class Given:
    """What is not made here.

    Args:
        expert: folder of the expert; None trains mask-FER's patch head on the source.
        under: before the systems' names, and a folder of its own for all that hangs on the expert.
        start: artifact that stage 3 goes on from; None trains stages 1 and 2 on the source.
    """

    expert: Path | None = None
    under: str = ""
    start: Path | None = None


class Joined:
    """One seed of the models with and without an expert, in ``root/mllm``.

    Args:
        bench: faces, CLIP and settings of all systems.
        budget: how much is trained.
        seed: of experts and stages.
        given: what is not made here.
        progress: told of what runs.
    """

    def __init__(
        self, bench: Bench, budget: Budget, seed: int, given: Given, progress: Progress
    ) -> None:
        self.bench, self.budget, self.seed, self.progress = bench, budget, seed, progress
        self.questions_root = bench.root / "mllm" / "questions"
        self.folder = bench.root / "mllm" / str(seed)
        self.joined = self.folder / given.under
        self.given = given

    def questions(self, name: str) -> Path:
        """The faces of a set with questions about them, by the embedded recipe."""
        root = f"sources.0.root={(self.bench.root / name).resolve()}"
        return once(
            self.questions_root / name, lambda out: build("embedded", out, [root], self.progress)
        )

    @property
    def expert(self) -> Path:
        """Who is joined: it saw the labels of the source's train split and no other."""
        if self.given.expert is not None:
            return self.given.expert

        def make(out: Path) -> None:
            config = mask_fer_config(self.bench, self.seed, out, MASK_FER["patch_head"])
            train_mask_fer(config, self.progress, self.bench.cache)

        return once(self.joined / "expert", make)

    def stage(self, out: Path, number: int, before: Path | None, changes: Sequence[str]) -> Path:
        """One stage on the source's train split from the shipped embedded config."""
        kind = ("stage1_align", "stage2_vqa", "stage3_face")[number]
        settings = [f"data={self.questions('source')}", f"max_steps={self.budget.steps[number]}"]
        settings += [f"seed={self.seed}", "save_steps=0", *changes]
        if before is not None:
            settings += [f"init_from={before}", f"max_questions_per_face={self.budget.questions}"]

        def make(out: Path) -> None:
            train(f"embedded/{kind}", [*settings, f"out={out}"], self.progress)
            release_memory()

        return once(out, make)

    def model(self, way: str) -> Path:
        """Stage 3 with an expert in one of the ways; stages 1 and 2 are those of all."""
        changes = [f"tasks={self.mix()}", "task_weights={}", "accumulation=1"]
        changes += [f"faces_per_device={self.budget.faces}"]
        if way == "alone":
            return self.stage(self.folder / "stage3_alone", 2, self.before(), changes)
        changes += [f"expert.model={self.expert}", f"expert.{way}=true"]
        if way == "text" and reads_labels(self.expert):
            changes += [f"expert.verdicts={self.verdicts()}"]
        return self.stage(self.joined / f"stage3_{way}", 2, self.before(), changes)

    def before(self) -> Path:
        """What stage 3 goes on from."""
        if self.given.start is not None:
            return self.given.start
        aligned = self.stage(self.folder / "stage1", 0, None, [])
        return self.stage(self.folder / "stage2", 1, aligned, [])

    def mix(self) -> str:
        """The shares of the tasks that the source has labels for."""
        asked = read_manifest(self.questions("source"))["answer_weights"]
        shares = [f"{task}: {share}" for task, share in MIX.items() if task in asked]
        return f"{{{', '.join(shares)}}}"

    def verdicts(self) -> Path:
        """Of each training face, by an expert that was trained without the subject."""
        return once(
            self.joined / "verdicts.parquet",
            lambda out: out_of_fold(
                self.expert, self.questions("source"), out, self.budget.folds, self.progress,
                self.bench.cache,
            ),
        )  # fmt: skip

    def fused(self, way: str) -> Path:
        """The same model with late fusion, fitted on the source's val split."""
        expert = self.expert if way == "alone" else None
        return once(
            self.joined / f"fused_{way}",
            lambda out: fuse(
                self.model(way), self.questions("source"), out, expert, progress=self.progress
            ),
        )

    def answers(self, way: str, test: str) -> Path:
        """What ``face-mllm eval`` writes of a model on a set; returns the predictions."""
        name, split = SETS.get(test, (test, "test"))

        def make(out: Path) -> None:
            evaluate(
                self.fused(way), self.questions(name), out,
                tasks=["expression"], split=split, limit=self.budget.limit, clip=None,
                progress=self.progress,
            )  # fmt: skip
            release_memory()

        return once(self.joined / "eval" / way / test, make) / "predictions.parquet"

    def measure(self, ways: Sequence[str], sets: Sequence[str]) -> None:
        """Put model, fusion and the joined expert alone in the table."""
        for test in sets:
            for way in ways:
                path = self.answers(way, test)
                alone = "" if way == "alone" else self.given.under  # the same beside any expert
                self._enter(path, Path(alone, "mllm", way), test, MODEL)
                self._enter(path, Path(self.given.under, "mllm", f"{way}+fusion"), test, FUSED)
                self._enter(path, Path(self.given.under, "mllm", "expert alone"), test, EXPERT)

    def _enter(self, path: Path, system: Path, test: str, scorer: str) -> None:
        found = from_eval(path, self.bench.classes, scorer)
        write_answers(self.bench.root, str(system), self.seed, test, found)


def reads_labels(expert: Path) -> bool:
    """Whether an expert learned from labels: mask-FER did, Exp-CLIP reads none."""
    return (expert / MASK_FER_FILE).exists()


def all_sets(root: Path) -> list[str]:
    """The source's val split and every test set of a folder."""
    return [*SETS, *test_sets(root)]
