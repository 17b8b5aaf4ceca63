"""Hugging Face Trainer on tree rows: token-exact loss, per-part rates, whole checkpoints."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from face_mllm import checkpoints, distributed, sharding
from face_mllm.artifact import Artifact, load_weights, save_weights
from face_mllm.errors import UserError
from face_mllm.meter import Metered
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.lora import fuse_lora
from face_mllm.optim import build_optimizer
from face_mllm.passes import RowPasses
from face_mllm.progress import Progress
from face_mllm.rows import model_inputs
from face_mllm.stages import part_of

console = Console(stderr=True)
METRICS_FILE = "metrics.jsonl"


class TreeTrainer(Metered, RowPasses):
    """Trains the composed model on tree rows.

    The loss is the weighted sum of answer-token losses over the *whole* accumulated batch on all
    processes, divided by the weights' sum there, so accumulation and process count change nothing.
    Checkpoints are those of :mod:`face_mllm.checkpoints`, the same under every way of sharding.

    Args:
        artifact: names the trained parts, for checkpoints.
        part_rates: part -> learning rate.
        update: how AdamW runs, see :func:`face_mllm.optim.choose_update`.
        order: settings the order of the data depends on; a resumed run must have the same.
        bf16: compute in bf16 by autocast; trained weights are fp32 under every launch.
    """

    def __init__(
        self,
        *args: Any,
        artifact: Artifact,
        part_rates: dict[str, float],
        update: str = "auto",
        order: dict[str, Any] | None = None,
        bf16: bool = False,
        **kwargs: Any,
    ):
        self.bf16 = bf16
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it all
        self.optimizer: torch.optim.Optimizer | None = self.optimizer
        self.artifact = artifact
        self.part_rates = part_rates
        self.update = update
        self.order = order or {}
        fuse_lora(self.model)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole batch already
        self._step_loss: torch.Tensor | None = None
        self._losses: list[float] = []  # of the steps since the last log line

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP2 work on CPUs too, and DeepSpeed offload without compiling its own Adam."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = distributed.adjust_fsdp(self.accelerator.state)
        if self.is_deepspeed_enabled:
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings.setdefault("zero_force_ds_cpu_optimizer", False)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        # in fp64 a sum of fp32 numbers is exact, so no order of adding changes it
        weights = [
            batch["label_weights"].to(_sum_device(device), torch.float64).sum()
            for batch in batch_samples
        ]
        total = distributed.total(torch.stack(weights).sum())
        return total.clamp(min=torch.finfo(total.dtype).tiny)  # no labelled weight: loss 0

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """bf16 autocast where accelerate does not put it around the model: DeepSpeed and FSDP2."""
        if self.bf16 and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return nullcontext()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of one micro-batch as its share of the accumulated batch."""
        outputs = model(**model_inputs(inputs), with_entropy=self.curriculum is not None)
        if self.meter:
            labels = inputs.get("label_tasks"), outputs.label_losses, inputs["label_weights"]
            self.meter.note(*labels)
        if self.curriculum:
            self.curriculum.measured(inputs, outputs, self.accelerator)
        whole = inputs["label_weights"].sum() if num_items_in_batch is None else num_items_in_batch
        self._note_loss(outputs.loss.detach(), whole)
        # gradients are averaged over processes afterwards, the divisor already counts them all
        loss = outputs.loss * (self.accelerator.num_processes / whole).to(outputs.loss)
        return (loss, outputs) if return_outputs else loss

    def _note_loss(self, loss: torch.Tensor, whole: torch.Tensor) -> None:
        """Add up the step's loss over micro-batches and processes; stop all if it is not finite."""
        summed = loss.to(_sum_device(loss.device), torch.float64)
        self._step_loss = summed if self._step_loss is None else self._step_loss + summed
        if not self.accelerator.sync_gradients:
            return
        step_loss = float(distributed.total(self._step_loss) / whole)  # the step's one wait
        self._step_loss = None
        if not math.isfinite(step_loss):
            raise UserError(
                f"loss became {step_loss} at step {self.state.global_step + 1}",
                "lower learning_rate or set precision: fp32; the last checkpoint is kept",
            )
        self._losses.append(step_loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the exact mean of the steps' losses in place of the library's rounded one."""
        if "loss" in logs and self._losses:
            logs["loss"] = sum(self._losses) / len(self._losses)
            self._losses = []
        super().log(logs, start_time)

    def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
        """AdamW with one group per part."""
        if self.optimizer is None:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer, words = build_optimizer(
                self.model, self.part_rates, self.args.weight_decay, betas, self.update
            )
            console.print(f"[dim]{words}")
        return self.optimizer

    def _is_trained(self, name: str) -> bool:
        return "lora_" in name or part_of(name) in self.artifact.trained

    def whole_weights(self) -> sharding.Tensors:
        """Everything an artifact of this run holds, on process 0 ({} elsewhere); collective."""
        return sharding.whole_weights(
            self.accelerator.unwrap_model(self.model_wrapped), self._is_trained
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        bare = self.accelerator.unwrap_model(self.model_wrapped)
        weights = self.whole_weights()
        moments = sharding.whole_moments(bare, self.optimizer)
        progress = {
            "schedule": self.lr_scheduler.state_dict(),
            "order": self.order,
            "random": distributed.gather(checkpoints.random_state()),
        }
        distributed.on_main(lambda: self._write_checkpoint(bare, weights, moments, progress))

    def _write_checkpoint(
        self,
        model: FaceMLLMForConditionalGeneration,
        weights: sharding.Tensors,
        moments: sharding.Tensors,
        progress: dict[str, Any],
    ) -> None:
        checkpoints.check_finite(weights, self.state.global_step)
        run = Path(self.args.output_dir)
        with checkpoints.writing(run, self.state.global_step) as folder:
            save_weights(model, self.artifact, folder, weights)
            save_file(moments, folder / checkpoints.MOMENTS_FILE)
            checkpoints.write_progress(folder, progress)
            if self.curriculum:
                self.curriculum.save(folder)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        checkpoints.keep_last(run, self.args.save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Leave loading to :meth:`_prepare_for_training`, which is called however it is sharded."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume: Any) -> Any:
        bare = self.model
        sharding.align(bare)
        if resume is None:
            return super()._prepare_for_training(max_steps, train_dataloader, None)
        checkpoints.check_same_order(self.order, Path(resume))
        load_weights(bare, self.artifact, Path(resume))  # before anything is split
        if self.curriculum:
            self.curriculum.load(Path(resume))
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(resume)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = Path(checkpoint or "")
        try:
            moments = load_file(folder / checkpoints.MOMENTS_FILE)
            sharding.put_moments(
                self.accelerator.unwrap_model(self.model_wrapped), self.optimizer, moments
            )
        except KeyError as error:
            raise UserError(
                f"{folder}: no optimiser state of {error}",
                "train the same parts as before, or start again with resume=never",
            ) from error
        rates = resume_schedule(self.lr_scheduler, checkpoints.read_progress(folder)["schedule"])
        for group, rate in zip(sharding.innermost(self.optimizer).param_groups, rates, strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states = checkpoints.read_progress(Path(checkpoint or ""))["random"]
        if distributed.rank() < len(states):
            checkpoints.set_random_state(states[distributed.rank()])
        else:  # more processes than before
            distributed.seed_process(self.args.seed + 1000 * self.state.global_step)


def _sum_device(device: torch.device) -> torch.device:
    """Where to add up losses: Apple GPUs know no fp64."""
    return torch.device("cpu") if device.type == "mps" else device


def resume_schedule(schedule: Any, saved: dict[str, Any]) -> list[float]:
    """Go on at a checkpoint's step of the schedule; returns the rate of each group there.

    The rates themselves are the config's: after a NaN a run goes on with lower ones.
    """
    schedule = getattr(schedule, "scheduler", schedule)  # below accelerate's wrapper
    schedule.load_state_dict({**saved, "base_lrs": schedule.base_lrs})
    curves = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    schedule._last_lr = [base * curve(schedule.last_epoch) for base, curve in curves]
    return schedule._last_lr


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

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps a resumed run makes again."""
        if state.is_world_process_zero:
            checkpoints.forget_after(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write one line."""
        if not state.is_world_process_zero or not logs:
            return
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2)}
        with self.path.open("a") as file:
            file.write(json.dumps({**line, **logs}) + "\n")
        if "loss" in logs:
            self.text = loss_words(logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the progress bar."""
        if self.progress and state.is_world_process_zero:
            self.progress(state.global_step, state.max_steps, self.text)


def loss_words(logs: dict[str, float]) -> str:
    """Loss, losses by task and speed of a log line, for the progress bar."""
    tasks = {key[5:]: value for key, value in logs.items() if key.startswith("loss/")}
    by_task = ", ".join(f"{task} {value:.2f}" for task, value in tasks.items())
    words = f"loss {logs['loss']:.3f}" + (f" ({by_task})" if len(tasks) > 1 else "")
    speed = logs.get("questions_per_second")
    return words if speed is None else f"{words}, {speed:.1f} questions/s"


def training_arguments(settings: dict[str, Any], run: Path) -> TrainingArguments:
    """Hugging Face arguments for a run folder; ``settings`` come from the stage config."""
    if distributed.is_sharded("DEEPSPEED"):  # it would round the weights; autocast does without
        settings = {**settings, "bf16": False}
    return TrainingArguments(
        output_dir=str(run),
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,
        label_names=["label_targets"],
        use_cpu=distributed.plain_cpu(),
        ddp_backend=distributed.backend(),
        **settings,
    )
