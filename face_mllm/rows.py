"""Face records to training rows: which face, which of its questions, as one tree each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from data_pipeline.questions.balance import by_question
from data_pipeline.records import QA, FaceRecord, load_split
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.model.processing import FaceProcessor
from face_mllm.tree import TreeRow, collate_trees


def draw_questions(
    qas: Sequence[QA], shares: dict[str, float], limit: int, rng: np.random.Generator
) -> list[QA]:
    """Draw at most ``limit`` questions of one face.

    With ``shares``, a question's chance is its task's share over the task's number of questions,
    so a face with 40 attributes and one age still gets asked its age. The answers of a soft label
    are one question: all of them are drawn, or none.

    Args:
        qas: all questions of the record.
        shares: task -> share; empty means every question alike.
        limit: most questions in a row.
        rng: source of the draw.
    """
    asked = by_question(qa for qa in qas if not shares or shares.get(qa.task, 0) > 0)
    pool = list(asked.values())
    if len(pool) <= limit:
        return [qa for i in rng.permutation(len(pool)) for qa in pool[i]]
    chances = np.ones(len(pool))
    if shares:
        counts = Counter(task for task, _, _ in asked)
        chances = np.array([shares[task] / counts[task] for task, _, _ in asked])
    picked = rng.choice(len(pool), size=limit, replace=False, p=chances / chances.sum())
    return [qa for i in picked for qa in pool[i]]


class FaceRows(Dataset):
    """The training split as an endless, seeded sequence of tree rows.

    Item ``k`` depends on (seed, k) alone: visit ``k // n`` shuffles the faces afresh and draws
    fresh questions. So the order is the same on any number of processes and after any resume.

    Args:
        data: built dataset folder.
        processor: turns questions into ids.
        shares: task -> share of the questions.
        limit: questions per face.
        max_tokens: longest row; longer ones lose questions from the end, never image tokens.
        seed: of order and draws.
        visits: how many rows the sequence has; None gives each face once.
    """

    def __init__(
        self,
        data: Path | str,
        processor: FaceProcessor,
        shares: dict[str, float],
        limit: int,
        max_tokens: int,
        seed: int,
        visits: int | None = None,
    ) -> None:
        self.records = load_split(data, "train")
        self.faces = len(self.records)
        self.visits = self.faces if visits is None else visits
        self.processor = processor
        self.shares = shares
        self.limit = limit
        self.max_tokens = max_tokens
        self.seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        prefix = len(processor.prefix_ids())
        if prefix + 16 > max_tokens:
            raise UserError(
                f"max_tokens {max_tokens} leaves no room after a prefix of {prefix} tokens",
                f"set max_tokens to at least {prefix + 64}",
            )

    @classmethod
    def from_stage(cls, stage: StageConfig, processor: FaceProcessor) -> FaceRows:
        """All rows a stage trains on, over all its epochs or steps."""
        rows = cls(
            stage.data,
            processor,
            stage.tasks,
            stage.max_questions_per_face,
            stage.max_tokens,
            stage.seed,
        )
        rows.visits = int(rows.faces * stage.epochs)
        if stage.max_steps > 0:
            processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate and torchrun
            rows.visits = stage.max_steps * stage.faces_per_device * stage.accumulation * processes
        return rows

    def __len__(self) -> int:
        return self.visits

    def all_records(self) -> Iterator[FaceRecord]:
        """Every training face once, in file order."""
        return (FaceRecord.from_row(row) for row in self.records)

    def record(self, visit: int) -> FaceRecord:
        """The face of one visit."""
        epoch, place = divmod(visit, self.faces)
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, 1, epoch))
            self._order = (epoch, rng.permutation(self.faces))
        return FaceRecord.from_row(self.records[int(self._order[1][place])])

    def __getitem__(self, visit: int) -> tuple[TreeRow, torch.Tensor]:
        """Tree row and pixels [3, H, W] of one visit."""
        record = self.record(visit)
        rng = np.random.default_rng((self.seed, 2, visit))
        drawn = draw_questions(record.qa, self.shares, self.limit, rng)
        if not drawn:
            raise UserError(
                f"{record.id}: no question of tasks {sorted(self.shares) or 'any'}",
                "change `tasks` in the stage config or build the dataset with them",
            )
        row = self._fit(record.id, drawn)
        return row, self.processor.pixels([record.open_image()])[0]

    def _fit(self, name: str, drawn: list[QA]) -> TreeRow:
        while True:
            row = self.processor.tree_row([(qa.question, qa.answer, qa.weight) for qa in drawn])
            if len(row.tree) <= self.max_tokens:
                return row
            asked = list(by_question(drawn).values())
            if len(asked) == 1:
                raise UserError(
                    f"{name}: question {drawn[0].question!r} needs {len(row.tree)} tokens",
                    f"raise max_tokens above {self.max_tokens} or shorten the question",
                )
            kept = max(1, int(len(asked) * self.max_tokens / len(row.tree)))
            drawn = [qa for answers in asked[:kept] for qa in answers]


class RowCollator:
    """Joins (tree row, pixels) pairs into one batch of model inputs."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[tuple[TreeRow, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return :func:`collate_trees` of the rows plus ``pixel_values`` [B, 3, H, W]."""
        batch = collate_trees([row for row, _ in items], self.pad_id)
        batch["pixel_values"] = torch.stack([pixels for _, pixels in items])
        return batch
