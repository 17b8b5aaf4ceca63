"""How a batch of packed rows goes through the model: in passes, counted, and measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

from face_mllm.curriculum import Curriculum, CurriculumSampler
from face_mllm.errors import UserError
from face_mllm.rows import COUNTS, split_rows


class RowPasses(Trainer):
    """Trainer that takes batches of :class:`face_mllm.rows.RowCollator`.

    Args:
        rows_per_pass: most rows of a batch in one forward pass, so ``rows_per_pass * max_tokens``
            bounds its tokens however many questions the faces bring; 0 for all at once.
        curriculum: told the loss and the answer entropy of every visit; None for none.
    """

    def __init__(
        self,
        *args: Any,
        rows_per_pass: int = 0,
        curriculum: Curriculum | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.rows_per_pass = rows_per_pass
        self.curriculum = curriculum
        self.counts = torch.zeros(len(COUNTS), dtype=torch.long)  # of this process, see COUNTS

    def _get_train_sampler(self, *_: Any) -> Sampler:
        if self.curriculum:
            return CurriculumSampler(self.curriculum)
        return SequentialSampler(self.train_dataset)  # FaceRows shuffles by (seed, visit) itself

    def get_batch_samples(self, *args: Any) -> Any:
        """The micro-batches of a step."""
        with worker_errors():
            return super().get_batch_samples(*args)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One micro-batch, in passes of at most ``rows_per_pass`` rows; gradients add up."""
        self.counts += inputs["counts"].cpu()
        passes = self._passes(inputs)
        loss = torch.zeros((), device=self.args.device)
        synchronise = self.accelerator.sync_gradients
        for number, part in enumerate(passes, 1):
            final = number == len(passes)
            self.accelerator.gradient_state._set_sync_gradients(synchronise and final)
            with nullcontext() if final else self._without_sync(model):
                loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def _passes(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The micro-batch's parts: as many in every process, or collectives would wait forever."""
        if not self.rows_per_pass:
            return [inputs]
        passes = split_rows(inputs, self.rows_per_pass)
        most = torch.tensor(len(passes), device=self.args.device)
        if self.args.world_size > 1:
            most = self.accelerator.gather(most).max()
        return passes + [without_labels(passes[-1])] * (int(most) - len(passes))

    def _without_sync(self, model: torch.nn.Module) -> Any:
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return nullcontext()  # DeepSpeed goes by sync_gradients alone
        return self.accelerator.no_sync(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the loss lines what the tree rows have saved so far."""
        if "loss" in logs:
            logs = {**logs, **self.row_figures()}
        super().log(logs, start_time)

    def row_figures(self) -> dict[str, float]:
        """Realised saving of this run over all processes; collective.

        Returns:
            ``token_saving``, tokens of separate conversations per token in the trees, and
            ``padding``, the share of computed tokens that are padding.
        """
        counts = self.counts.to(self.args.device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts)
        total = dict(zip(COUNTS, counts.tolist(), strict=True))
        if not total["tokens"]:
            return {}
        return {
            "token_saving": round(total["separate_tokens"] / total["tokens"], 3),
            "padding": round(1 - total["tokens"] / total["padded_tokens"], 4),
        }


@contextmanager
def worker_errors() -> Iterator[None]:
    """Give the errors of data-loading processes as lines: torch wraps them in their traceback."""
    try:
        yield
    except UserError as error:
        wrapped, _, line = str(error).rpartition(f"{UserError.__name__}: ")
        raise UserError(line.strip()) if wrapped else error from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data-loading process has died ({str(error).splitlines()[0]})",
            "memory may have run out: lower workers; the last checkpoint is kept",
        ) from error


def without_labels(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same pass with nothing to learn: loss 0 and zero gradients."""
    labels = ("label_rows", "label_targets", "label_weights", "label_faces", "label_tasks")
    empty = {key: value[:0] if key in labels else value for key, value in inputs.items()}
    if "expert_weights" in empty:
        empty["expert_weights"] = torch.zeros_like(empty["expert_weights"])
    return empty
