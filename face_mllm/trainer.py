"""Hugging Face Trainer on tree rows: token-exact loss, per-part rates, whole checkpoints."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from face_mllm.artifact import Artifact, load_weights, save_weights
from face_mllm.errors import UserError
from face_mllm.model.lora import fuse_lora
from face_mllm.passes import RowPasses
from face_mllm.progress import Progress
from face_mllm.rows import model_inputs

COMPLETE_FILE = "complete"
METRICS_FILE = "metrics.jsonl"


class TreeTrainer(RowPasses):
    """Trains the composed model on tree rows.

    The loss is the weighted sum of answer-token losses over the *whole* accumulated batch on all
    processes, divided by the weights' sum there, so accumulation and process count change nothing.

    Args:
        artifact: names the trained parts, for checkpoints.
        part_rates: part -> learning rate where it differs from the stage's.
    """

    def __init__(self, *args: Any, artifact: Artifact, part_rates: dict[str, float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it all
        self.optimizer: torch.optim.Optimizer | None = self.optimizer
        self.artifact = artifact
        self.part_rates = part_rates
        fuse_lora(self.model)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole batch already

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        total = sum(batch["label_weights"].sum() for batch in batch_samples)
        total = torch.as_tensor(total, dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total.clamp(min=torch.finfo(total.dtype).tiny)  # no labelled weight: loss 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of one micro-batch as its share of the accumulated batch."""
        outputs = model(**model_inputs(inputs), with_entropy=self.curriculum is not None)
        if self.curriculum:
            self.curriculum.measured(inputs, outputs, self.accelerator)
        whole = inputs["label_weights"].sum() if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes afterwards, the divisor already counts them all
        loss = outputs.loss / whole * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise UserError(
                f"loss became {loss.item()} at step {self.state.global_step}",
                "lower learning_rate or set precision: fp32; the last checkpoint is kept",
            )
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """AdamW with one group per part."""
        if self.optimizer is None:
            groups: dict[str, list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(name.split(".", 1)[0], []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": group, "lr": self.part_rates.get(module, self.args.learning_rate)}
                    for module, group in groups.items()
                ],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.accelerator.unwrap_model(self.model), self.artifact, folder, state_dict)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.curriculum and self.args.should_save:
            self.curriculum.save(
                Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            )
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / COMPLETE_FILE).touch()  # a kill before this line leaves it to be discarded

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        target = self.accelerator.unwrap_model(model or self.model)
        load_weights(target, self.artifact, Path(resume_from_checkpoint))
        if self.curriculum:
            self.curriculum.load(Path(resume_from_checkpoint))


class MetricsLog(TrainerCallback):
    """Appends every log line to ``metrics.jsonl`` and reports progress.

    Args:
        path: the jsonl file.
        progress: called with (step, steps, text).
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        self.path = path
        self.progress = progress
        self.started = time.monotonic()
        self.text = ""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2)}
        with self.path.open("a") as file:
            file.write(json.dumps({**line, **logs}) + "\n")
        if "loss" in logs:
            self.text = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the progress bar."""
        if self.progress and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, self.text)


def training_arguments(settings: dict[str, Any], run: Path) -> TrainingArguments:
    """Hugging Face arguments for a run folder; ``settings`` come from the stage config."""
    return TrainingArguments(
        output_dir=str(run),
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,
        label_names=["label_targets"],
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )


def last_good_checkpoint(run: Path, resume: str) -> str | None:
    """The checkpoint to go on from; half-written ones are removed.

    Args:
        run: run folder.
        resume: ``auto``, ``never`` or a checkpoint folder.
    """
    if resume == "never":
        shutil.rmtree(run, ignore_errors=True)
        return None
    if resume != "auto":
        if not (Path(resume) / COMPLETE_FILE).exists():
            raise UserError(f"{resume}: not a complete checkpoint", "use resume: auto")
        return resume
    for folder in run.glob("checkpoint-*"):
        if not (folder / COMPLETE_FILE).exists():
            shutil.rmtree(folder)
    return get_last_checkpoint(str(run)) if run.is_dir() else None
