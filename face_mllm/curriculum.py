"""Mixed-order self-paced sampling as data order: easy and hard faces in every batch.

After Mo-SCL (Li, Han, Zhou; arXiv 2302.04677): difficulty comes from loss *and* uncertainty, and
hard faces are mixed with easy ones instead of weighed down. Its formulas are unpublished; the form
here is a face's difficulty ``r * rank(loss) + (1 - r) * rank(answer entropy)``, both smoothed over
its visits, and a share of hard faces that grows from 0.1 to 0.5 over the run.

The first epoch brings every face once in random order. Later epochs keep the number of visits and
draw them from the easier and the harder half in that proportion, evenly spread, so a batch of any
size is mixed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from face_mllm.config import CurriculumSettings, StageConfig
from face_mllm.errors import UserError
from face_mllm.rows import FaceRows

STATE_FILE = "curriculum.npz"
ROOM = 4  # an epoch's order leaves out what the last 1/ROOM of the epoch before measures


class Curriculum:
    """Which face each visit brings; a function of the seed and of measurements only.

    The order of an epoch is made from what visits before the last quarter of the epoch before have
    measured. The quarter is room for data loaders that read ahead, so how far one does, how many
    processes there are and where a run was interrupted change nothing.

    Args:
        settings: of the stage.
        faces: faces in the training split.
        visits: visits of the whole run.
        seed: of the orders.
    """

    def __init__(self, settings: CurriculumSettings, faces: int, visits: int, seed: int) -> None:
        self.settings = settings
        self.faces, self.visits, self.seed = faces, visits, seed
        self.loss = np.full(faces, np.nan)
        self.entropy = np.full(faces, np.nan)
        self.pending: dict[int, tuple[int, float, float]] = {}  # visit -> face, loss, entropy
        self.used = 0  # visits whose measurements are in loss and entropy
        self.orders: dict[int, np.ndarray] = {}  # of the epochs that may still be read

    def order(self, epoch: int) -> np.ndarray:
        """Faces of an epoch's visits, int64 [faces].

        Raises:
            UserError: the data loader reads further ahead than a quarter of an epoch.
        """
        if epoch not in self.orders:
            self.orders[epoch] = self._plan(epoch)
            self.orders = {e: order for e, order in self.orders.items() if e >= epoch - 1}
        return self.orders[epoch]

    def measured(self, batch: dict[str, torch.Tensor], outputs: Any, accelerator: Any) -> None:
        """Take up the label losses and entropies of a batch, from all processes.

        Args:
            batch: of :class:`face_mllm.rows.RowCollator`.
            outputs: of the model, with ``label_losses`` and ``label_entropies``.
            accelerator: joins the processes.
        """
        faces = batch["label_faces"]
        table = batch["visits"].new_zeros(len(batch["visits"]), 3, dtype=torch.float64)
        table[:, 0].index_add_(0, faces, torch.ones_like(faces, dtype=torch.float64))
        table[:, 1].index_add_(0, faces, outputs.label_losses[: len(faces)].double())
        table[:, 2].index_add_(0, faces, outputs.label_entropies[: len(faces)].double())
        table = torch.cat([batch["visits"].double(), table], 1)
        for visit, face, labels, loss, entropy in gathered(table, accelerator).tolist():
            if labels:  # a pass that only keeps processes in step measures nothing
                self.pending[int(visit)] = (int(face), loss / labels, entropy / labels)

    def difficulty(self) -> np.ndarray:
        """Difficulty in [0, 1] of each face; one not measured yet is neither easy nor hard."""
        share = self.settings.loss_share
        return share * _ranks(self.loss) + (1 - share) * _ranks(self.entropy)

    def hard_share(self, epoch: int) -> float:
        """Share of visits that go to the harder half."""
        first, last = self.settings.hard_share
        return first + (last - first) * min(1.0, epoch * self.faces / self.visits)

    def _plan(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, 1, epoch))  # the first epoch is FaceRows' own
        if epoch == 0:
            return rng.permutation(self.faces)
        self._use_up_to(epoch * self.faces - self.faces // ROOM)
        ranked = np.lexsort((rng.permutation(self.faces), self.difficulty()))
        easy, hard = np.split(ranked, [(self.faces + 1) // 2])
        places = np.arange(1, self.faces + 1) * self.hard_share(epoch)
        is_hard = np.floor(places) > np.floor(places - self.hard_share(epoch))
        is_hard &= bool(len(hard))
        order = np.empty(self.faces, dtype=np.int64)
        order[is_hard] = _draws(hard, int(is_hard.sum()), rng)
        order[~is_hard] = _draws(easy, int((~is_hard).sum()), rng)
        return order

    def _use_up_to(self, visit: int) -> None:
        """Smooth the measurements of visits before ``visit`` into the faces', in their order."""
        keep = self.settings.smoothing
        for number in range(self.used, visit):
            if number not in self.pending:
                raise UserError(
                    f"the curriculum needs visit {number} measured, but data is read further ahead",
                    "set workers: 0 or fewer, or train without a curriculum: too few faces",
                )
            face, loss, entropy = self.pending.pop(number)
            for values, value in ((self.loss, loss), (self.entropy, entropy)):
                old = value if np.isnan(values[face]) else values[face]
                values[face] = keep * old + (1 - keep) * value
        self.used = max(self.used, visit)

    def save(self, folder: Path) -> None:
        """Write the state into a checkpoint folder."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [(visit, *found) for visit, found in sorted(self.pending.items())]
        state: dict[str, Any] = {f"order_{epoch}": order for epoch, order in self.orders.items()}
        state |= {"loss": self.loss, "entropy": self.entropy, "used": np.array(self.used)}
        state["pending"] = np.array(rows, dtype=np.float64).reshape(-1, 4)
        np.savez(folder / STATE_FILE, **state)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the checkpoint is of another number of faces or has no curriculum.
        """
        try:
            with np.load(folder / STATE_FILE) as state:
                found = {name: state[name] for name in state.files}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: no curriculum in it ({error})", "resume without a curriculum"
            ) from error
        if len(found["loss"]) != self.faces:
            raise UserError(f"{folder}: made on {len(found['loss'])} faces", "use the same data")
        self.loss, self.entropy = found["loss"], found["entropy"]
        self.used = int(found["used"])
        self.pending = {int(v): (int(f), loss, u) for v, f, loss, u in found["pending"].tolist()}
        self.orders = {int(n[6:]): found[n] for n in found if n.startswith("order_")}


def curriculum_of(stage: StageConfig, rows: FaceRows) -> Curriculum | None:
    """The stage's curriculum over its rows, if it has one.

    Raises:
        UserError: the run has too few epochs or faces for one.
    """
    if stage.curriculum is None:
        return None
    if rows.visits <= rows.faces:
        raise UserError(
            f"curriculum: acts from the second epoch, {rows.visits} visits are one or less",
            "raise epochs or max_steps, or remove curriculum",
        )
    # the step's batches and one more are read before the step is measured, workers read 2 each
    batches = stage.accumulation + 1 + 2 * (stage.workers or 0)
    ahead = batches * stage.faces_per_device * int(os.environ.get("WORLD_SIZE", "1"))
    if ahead > rows.faces // ROOM:
        raise UserError(
            f"curriculum: {rows.faces} faces are too few, {ahead} are read before any is measured",
            f"use {ROOM * ahead} faces or more, smaller batches, or fewer workers",
        )
    return Curriculum(stage.curriculum, rows.faces, rows.visits, stage.seed)


class CurriculumSampler(Sampler):
    """Yields (visit, face) for every visit of the run, asking for each epoch's order in time."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum

    def __len__(self) -> int:
        return self.curriculum.visits

    def __iter__(self) -> Iterator[tuple[int, int]]:
        curriculum = self.curriculum
        first_known = min(curriculum.orders, default=0)
        for visit in range(curriculum.visits):
            epoch, place = divmod(visit, curriculum.faces)
            if epoch < first_known:  # a resumed run skips these visits, whichever face they had
                yield visit, 0
            else:
                yield visit, int(curriculum.order(epoch)[place])


def gathered(table: torch.Tensor, accelerator: Any) -> torch.Tensor:
    """Rows [N, C] of all processes, which may hold different numbers of them."""
    if accelerator.num_processes == 1:
        return table
    table = accelerator.pad_across_processes(table.contiguous(), dim=0)
    return accelerator.gather(table)  # padding is rows of zeros


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks scaled to [0, 1]; unknown values stand in the middle."""
    known = np.flatnonzero(~np.isnan(values))
    ranks = np.full(len(values), 0.5)
    if len(known) > 1:
        ranks[known[np.argsort(values[known], kind="stable")]] = np.linspace(0, 1, len(known))
    return ranks


def _draws(pool: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` members of a pool, each as often as any other but for one."""
    if count == 0:
        return pool[:0]
    rounds = -(-count // len(pool))
    return np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:count]
