"""Face records to training rows: which face, which of its questions, as one tree each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from data_pipeline.questions.balance import by_question
from data_pipeline.records import QA, FaceRecord, load_split
from face_mllm.config import StageConfig
from face_mllm.draws import draw_questions
from face_mllm.errors import UserError
from face_mllm.experts.joined.rows import ExpertRows, stacked
from face_mllm.features.cache import FeatureCache, content_key
from face_mllm.features.tower import STATES
from face_mllm.model.attention import FLEX, FLEX_BLOCK, pair_cost
from face_mllm.model.processing import FaceProcessor
from face_mllm.tree import TreeRow, collate_trees, plan_rows

MULTIPLE = 32  # of row lengths and labels
TURNS = 1000  # a curriculum's visits begin at any of so many
COUNTS = (
    "faces",
    "questions",
    "answer_tokens",
    "tokens",
    "padded_tokens",
    "separate_tokens",
    "seen_pairs",  # of a token and one it sees, itself among them
)


class RowItem(NamedTuple):
    """One visit of one face.

    Attributes:
        row: its drawn questions as a tree row.
        picture: pixels [3, H, W], or the frozen tower's states [tokens, channels].
        visit: number of the visit.
        face: number of the face in the training split.
        expert: what a joined expert gives the model of it.
    """

    row: TreeRow
    picture: torch.Tensor
    visit: int
    face: int
    expert: dict[str, torch.Tensor] | None = None


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
        task_weights: task -> factor on the loss of its answers; 1 where absent.
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
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.records = load_split(data, "train")
        self.faces = len(self.records)
        self.visits = self.faces if visits is None else visits
        self.processor = processor
        self.shares = shares
        self.limit = limit
        self.max_tokens = max_tokens
        self.seed = seed
        self.task_weights = task_weights or {}
        self.tasks = self._task_names()
        self.states: FeatureCache | None = None  # set by face_mllm.frozen
        self.expert: ExpertRows | None = None
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
            task_weights=stage.task_weights,
        )
        if processor.expert is not None:
            rows.expert = ExpertRows(processor.expert, stage.expert)
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate and torchrun
        step = stage.faces_per_device * stage.accumulation * processes
        # whole steps only: a last short one would differ with the number of processes
        steps = stage.max_steps if stage.max_steps > 0 else int(rows.faces * stage.epochs) // step
        rows.visits = max(1, steps) * step
        return rows

    def _task_names(self) -> list[str]:
        """Tasks whose losses are told apart; what is met later counts as ``other``."""
        first = self.records.select_columns(["qa"]).select(range(min(self.faces, 500)))
        met = {qa["task"] for row in first for qa in row["qa"]}
        asked = [task for task, share in self.shares.items() if share > 0]
        return [*sorted(met.intersection(asked) if asked else met), "other"]

    def __len__(self) -> int:
        return self.visits

    def all_records(self) -> Iterator[FaceRecord]:
        """Every training face once, in file order."""
        return (FaceRecord.from_row(row) for row in self.records)

    def face(self, visit: int) -> int:
        """Number of the face of one visit: each epoch brings every face once, in a new order."""
        epoch, place = divmod(visit, self.faces)
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, 1, epoch))
            self._order = (epoch, rng.permutation(self.faces))
        return int(self._order[1][place])

    def record(self, visit: int, face: int | None = None) -> FaceRecord:
        """The face of one visit, or the one a curriculum chose for it."""
        return FaceRecord.from_row(self.records[self.face(visit) if face is None else face])

    def __getitem__(self, index: int | tuple[int, int]) -> RowItem:
        """One visit, or one (visit, face) of a curriculum."""
        visit, face = index if isinstance(index, tuple) else (index, self.face(index))
        record = self.record(visit, face)
        _, row = self.drawn(record, visit, face)
        given = self.expert.inputs(record, sum(row.weights)) if self.expert else None
        return RowItem(row, self.picture(record), visit, face, given)

    def picture(self, record: FaceRecord) -> torch.Tensor:
        """Pixels of a face, or what the frozen tower made of them."""
        if self.states is not None:
            return self.states.gather([content_key(record)])[STATES][0]
        return self.processor.pixels([record.open_image()])[0]

    def visited(self) -> list[int]:
        """Faces that the run visits, in file order."""
        if self.visits >= self.faces:
            return list(range(self.faces))
        return sorted(self.face(visit) for visit in range(self.visits))

    def drawn(
        self, record: FaceRecord, visit: int, face: int | None = None
    ) -> tuple[list[QA], TreeRow]:
        """What a visit asks about a record, weighed by task, as many as fit, and its tree row.

        A face's questions take turns from epoch to epoch; where a curriculum brings it more often
        or seldom, its turn is drawn.
        """
        rng = np.random.default_rng((self.seed, 2, visit))
        plain = self.face(visit)
        face = plain if face is None else face
        turn = visit // self.faces if face == plain else int(rng.integers(TURNS))
        own = np.random.default_rng((self.seed, 3, face))
        asked = draw_questions(record.qa, self.shares, self.limit, own, turn)
        picked = [qa for at in rng.permutation(len(asked)) for qa in asked[at]]
        if not picked:
            raise UserError(
                f"{record.id}: no question of tasks {sorted(self.shares) or 'any'}",
                "change `tasks` in the stage config or build the dataset with them",
            )
        picked = self.expert.told(record, picked) if self.expert else picked
        weights = self.task_weights
        return self._fit(
            record.id,
            [replace(qa, weight=qa.weight * weights.get(qa.task, 1.0)) for qa in picked],
        )

    def _fit(self, name: str, picked: list[QA]) -> tuple[list[QA], TreeRow]:
        while True:
            row = self.processor.tree_row([(qa.question, qa.answer, qa.weight) for qa in picked])
            if len(row.tree) <= self.max_tokens:
                codes = {task: code for code, task in enumerate(self.tasks)}
                other = len(self.tasks) - 1
                row.tasks = [codes.get(picked[group].task, other) for group in row.groups]
                return picked, row
            asked = list(by_question(picked).values())
            if len(asked) == 1:
                raise UserError(
                    f"{name}: question {picked[0].question!r} needs {len(row.tree)} tokens",
                    f"raise max_tokens above {self.max_tokens} or shorten the question",
                )
            kept = max(1, int(len(asked) * self.max_tokens / len(row.tree)))
            picked = [qa for answers in asked[:kept] for qa in answers]


class RowCollator:
    """Joins visits into one batch of model inputs, several faces to a row where that pays.

    Args:
        pad_id: token of the padding.
        max_tokens: budget of a packed row; 0 gives every face its own row.
        square: cost of a dense attention pair, see :func:`face_mllm.tree.plan_rows`.
        multiple: row lengths and labels are padded to multiples of it. torch's CPU library keeps
            what it compiled for every shape it meets, 20 MB a step when no two steps are alike.
    """

    def __init__(
        self, pad_id: int, max_tokens: int = 0, square: float = 0.0, multiple: int = MULTIPLE
    ) -> None:
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.square = square
        self.multiple = multiple

    @classmethod
    def from_stage(cls, stage: StageConfig, model: Any, processor: FaceProcessor) -> RowCollator:
        """The stage's packing, in the way that suits how the model's LLM attends."""
        config = model.language_model.config
        multiple = FLEX_BLOCK if config._attn_implementation == FLEX else MULTIPLE
        budget = stage.max_tokens if stage.pack else 0
        return cls(processor.pad_id, budget, pair_cost(config), multiple)

    def __call__(self, items: Sequence[RowItem]) -> dict[str, torch.Tensor]:
        """Join visits.

        Returns:
            :func:`collate_trees` of the rows; faces in the order they stand there as
            ``pixel_values`` [F, 3, H, W] or ``vision_states`` [F, tokens, channels], ``visits``
            [F, 2] (visit, face) and ``face_rows`` [F], the row each is in; ``label_faces``, which
            of them a label row belongs to, without the padding at their end; ``label_tasks`` [L],
            codes of their tasks; ``counts``, int64 in the order of :data:`COUNTS`.
        """
        trees = [item.row for item in items]
        lengths = [len(row.tree) for row in trees]
        plan = [[number] for number in range(len(trees))]
        if self.max_tokens:
            plan = plan_rows(lengths, self.max_tokens, self.square, self.multiple)
        order = [number for numbers in plan for number in numbers]
        batch = collate_trees(trees, self.pad_id, plan, self.multiple)
        labels = torch.tensor([len(trees[number].rows) for number in order])
        batch["label_faces"] = torch.arange(len(order)).repeat_interleave(labels)
        tasks = torch.zeros_like(batch["label_rows"])  # padding weighs nothing in any task
        known = [code for number in order for code in trees[number].tasks]
        tasks[: len(known)] = torch.tensor(known, dtype=torch.long)
        batch["label_tasks"] = tasks
        pictures = torch.stack([items[number].picture for number in order])
        batch[picture_key(pictures)] = pictures
        batch.update(stacked([items[number].expert for number in order]))
        batch["visits"] = torch.tensor([[items[n].visit, items[n].face] for n in order])
        in_row = torch.tensor([len(numbers) for numbers in plan])
        batch["face_rows"] = torch.arange(len(plan)).repeat_interleave(in_row)
        batch["counts"] = torch.tensor(
            [
                len(trees),
                sum(len(set(row.groups)) for row in trees),
                int(labels.sum()),
                sum(lengths),
                batch["input_ids"].numel(),
                sum(row.separate for row in trees),
                sum(int(row.tree.positions().sum()) + len(row.tree) for row in trees),
            ]
        )
        return batch


def picture_key(pictures: torch.Tensor) -> str:
    """The model's name for pictures [F, 3, H, W] or states [F, tokens, channels]."""
    return "pixel_values" if pictures.dim() == 4 else "vision_states"


OF_EXPERT = ("expert_features", "expert_seen", "expert_targets", "expert_weights")
PICTURES = ("pixel_values", "vision_states", "visits", "face_rows", *OF_EXPERT)
BOOKKEEPING = ("label_faces", "label_tasks", "visits", "face_rows", "counts")


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without what is not for the model."""
    return {key: value for key, value in batch.items() if key not in BOOKKEEPING}


def split_rows(batch: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """A batch as several of at most ``size`` rows each; their losses add up to the batch's.

    ``counts`` is not split: it stays with the batch.
    """
    width = batch["input_ids"].shape[1]
    parts = []
    for start in range(0, len(batch["input_ids"]), size):
        of_rows = slice(start, start + size)
        labels = batch["label_rows"].div(width, rounding_mode="floor")
        of_labels = (labels >= start) & (labels < start + size)
        of_faces = (batch["face_rows"] >= start) & (batch["face_rows"] < start + size)
        part = {key: batch[key][of_rows] for key in ("input_ids", "position_ids", "subtree_ends")}
        padding = -int(of_labels.sum()) % MULTIPLE
        for key in ("label_rows", "label_targets", "label_weights", "label_tasks"):
            part[key] = functional.pad(batch[key][of_labels], (0, padding))
        part["label_faces"] = batch["label_faces"][of_labels[: len(batch["label_faces"])]]
        for key in PICTURES:
            if key in batch:
                part[key] = batch[key][of_faces]
        first = int((batch["face_rows"] < start).sum())
        part["label_rows"] = (part["label_rows"] - start * width).clamp(min=0)
        part["label_faces"] = part["label_faces"] - first
        part["face_rows"] = part["face_rows"] - start
        parts.append(part)
    return parts
