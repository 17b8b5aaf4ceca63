"""What a run achieves: questions and tokens a second, share of the machine's peak, where time goes.

The peak is measured, not looked up: the best of a few products of large square matrices in the
run's own dtype, on the run's own device and threads.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Trainer, TrainerCallback

from face_mllm.config import StageConfig
from face_mllm.estimate import Load, decoder_of
from face_mllm.flops import StepFormula
from face_mllm.hardware import Hardware
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.rows import COUNTS

Reduce = Callable[[torch.Tensor], torch.Tensor]
console = Console(stderr=True)
STARVED = 0.1  # share of the time that waiting for data may take
PHASES = ("data", "tower", "llm", "optimiser", "other")


class Stopwatch:
    """Seconds by phase; on CUDA by events in the device's own time, so nothing waits."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self._seconds: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """This moment."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, phase: str, start: Any) -> None:
        """Count from ``start`` until now."""
        if self.cuda:
            self._pending.append((phase, start, self.mark()))
        else:
            self._seconds[phase] += self.mark() - start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        start = self.mark()
        yield
        self.add(name, start)

    def seconds(self) -> Mapping[str, float]:
        """Seconds of every phase so far."""
        if self._pending:
            torch.cuda.synchronize()
            for phase, start, end in self._pending:
                self._seconds[phase] += start.elapsed_time(end) / 1000
            self._pending.clear()
        return self._seconds


class RunMeter:
    """Counts what a run does.

    Args:
        model: composed model; its tower is watched.
        formula: operations of its micro-batches.
        tasks: names of the codes in ``label_tasks``.
        device, dtype: of the products, see :class:`face_mllm.hardware.Hardware`.
    """

    def __init__(
        self,
        model: Any,
        formula: StepFormula,
        tasks: Sequence[str],
        device: str,
        dtype: str,
    ) -> None:
        self.formula = formula
        self.tasks = tuple(tasks)
        self.device = device
        self.dtype = dtype
        self.watch = Stopwatch(device)
        self.started = time.perf_counter()
        self.ended = self.started
        self.steps = 0
        self.questions = self.tokens = self.faces = self.pictures = self.llm_flops = self.flops = 0
        self._sums = torch.zeros(2, len(self.tasks), dtype=torch.float64)
        self._last = (self.started, 0)
        self._watch_tower(model.vision_tower)

    @classmethod
    def from_stage(
        cls,
        stage: StageConfig,
        hardware: Hardware,
        model: FaceMLLMForConditionalGeneration,
        tasks: Sequence[str],
    ) -> RunMeter:
        """The meter of a stage's run; the model is frozen as the stage says already."""
        trainings = stage.part_trainings()
        return cls(
            model,
            StepFormula(model, decoder_of(model, trainings["llm"]), trainings),
            tasks,
            hardware.device,
            hardware.dtype,
        )

    def _watch_tower(self, tower: nn.Module) -> None:
        begun: list[Any] = []

        def before(_module: nn.Module, args: tuple) -> None:
            begun.append(self.watch.mark())
            self.pictures += args[0].shape[0]

        def after(*_: Any) -> None:
            self.watch.add("tower", begun.pop())

        tower.register_forward_pre_hook(before)
        tower.register_forward_hook(after)

    def begin(self) -> None:
        """The first step starts now."""
        self.started = self.ended = time.perf_counter()
        self._last = (self.started, 0)

    def saw(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count one micro-batch before it runs: what it needs, no padding and no masked pairs."""
        counts = dict(zip(COUNTS, inputs["counts"].tolist(), strict=True))
        self.questions += counts["questions"]
        self.tokens += counts["tokens"]
        self.faces += counts["faces"]
        load = Load(1, counts["tokens"], counts["answer_tokens"], pairs=counts["seen_pairs"])
        step = self.formula(load, counts["faces"])
        self.llm_flops += step.llm
        self.flops += step.llm + step.projector

    def note(
        self, tasks: torch.Tensor | None, losses: torch.Tensor | None, weights: torch.Tensor
    ) -> None:
        """Add up the label rows' losses by task.

        Args:
            tasks: [L] codes, losses: [L] unweighted, weights: [L].
        """
        if tasks is None or losses is None:
            return
        weights = weights.double()
        both = torch.stack([losses.double() * weights, weights]).cpu()
        self._sums.index_add_(1, tasks.cpu(), both)

    def figures(self, reduce: Reduce) -> dict[str, float]:
        """Since the last call: mean loss by task, and questions a second; collective.

        Args:
            reduce: sums a tensor over all processes.
        """
        both = reduce(torch.cat([self._sums.flatten(), torch.tensor([self.questions]).double()]))
        total, asked = both[:-1].view(2, -1), int(both[-1])
        self._sums.zero_()
        now, (then, before) = time.perf_counter(), self._last
        self._last = (now, asked)
        found = {
            f"loss/{task}": round(float(total[0, code] / total[1, code]), 5)
            for code, task in enumerate(self.tasks)
            if total[1, code] > 0
        }
        return {**found, "questions_per_second": round((asked - before) / (now - then), 2)}

    def report(self, reduce: Reduce, processes: int = 1) -> dict[str, float]:
        """The whole run, over all processes; collective.

        Returns:
            seconds, steps, faces, questions, tokens, their rates, ``share_of_peak`` of all needed
            operations over all the time, ``llm_share_of_peak`` of the LLM's over its own, the
            peak in operations a second, and ``time_*`` shares of the phases. Padding, masked
            attention pairs and what checkpointing repeats are not needed operations.
        """
        own = [self.faces, self.questions, self.tokens, self.flops + self._tower_flops()]
        whole = reduce(torch.tensor([*own, self.llm_flops], dtype=torch.float64)).tolist()
        faces, questions, tokens, flops, llm_flops = whole
        seconds = max(self.ended - self.started, 1e-9)
        phases = self.phases(seconds)
        peak = measured_peak(self.device, self.dtype) * processes
        llm = max(phases["llm"], 1e-9)
        return {
            "seconds": round(seconds, 2),
            "steps": self.steps,
            "faces": int(faces),
            "questions": int(questions),
            "tokens": int(tokens),
            "questions_per_second": round(questions / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_gflops": round(peak / 1e9, 1),
            "share_of_peak": round(flops / seconds / peak, 4),
            "llm_share_of_peak": round(llm_flops / llm / peak, 4),
            **{f"time_{phase}": round(phases[phase] / seconds, 4) for phase in PHASES},
        }

    def phases(self, seconds: float) -> dict[str, float]:
        """Seconds of each phase; ``llm`` is the model's time less the tower's forward pass."""
        found = self.watch.seconds()
        phases: dict[str, float] = {n: found[n] for n in ("data", "tower", "optimiser")}
        phases["llm"] = max(0.0, found["model"] - found["tower"])
        phases["other"] = max(0.0, seconds - sum(phases.values()))
        return phases

    def _tower_flops(self) -> int:
        passes = {"frozen": 1, "lora": 2, "full": 3}[self.formula.trainings["vision"]]
        return self.pictures * self.formula.look * passes


class MeterClock(TrainerCallback):
    """Tells a meter when the run and its optimiser steps begin and end."""

    def __init__(self, meter: RunMeter) -> None:
        self.meter = meter
        self._start: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Loading is over."""
        self.meter.begin()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The gradients are there."""
        self._start = self.meter.watch.mark()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The weights are new."""
        self.meter.watch.add("optimiser", self._start)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more step."""
        self.meter.steps += 1
        self.meter.ended = time.perf_counter()


class Metered(Trainer):
    """Trainer that a :class:`RunMeter` watches; put it before the class it is to watch.

    Args:
        meter: told of everything; None for none.
    """

    def __init__(self, *args: Any, meter: RunMeter | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = meter
        if meter:
            self.add_callback(MeterClock(meter))

    def get_batch_samples(self, *args: Any) -> Any:
        """Wait for the data."""
        if self.meter is None:
            return super().get_batch_samples(*args)
        with self.meter.watch.phase("data"):
            return super().get_batch_samples(*args)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward."""
        if self.meter is None:
            return super().training_step(model, inputs, *args, **kwargs)
        self.meter.saw(inputs)
        with self.meter.watch.phase("model"):
            return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Add losses by task and the speed to the loss lines."""
        if self.meter and "loss" in logs:
            logs.update(self.meter.figures(self.sum_over_processes))
        super().log(logs, *args)

    def end_of_run(self) -> dict[str, float]:
        """Print and log what the run achieved, see :meth:`RunMeter.report`; collective."""
        if self.meter is None:
            return {}
        report = self.meter.report(self.sum_over_processes, self.args.world_size)
        self.log({f"run/{key}": value for key, value in report.items()})
        if self.is_world_process_zero():
            console.print(report_table(report))
            console.print(data_advice(report, self.args.dataloader_num_workers), end="")
        return report

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a CPU tensor over all processes; collective."""
        if self.args.world_size == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum").cpu()


def measured_peak(device: str, dtype: str, seconds: float = 0.25) -> float:
    """Operations a second of large matrix products, the best of several.

    Args:
        device, dtype: as the run has them.
        seconds: to measure for.
    """
    side = 8192 if device.startswith("cuda") else 1024
    one = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    best = 0.0
    watch = Stopwatch(device)
    until = time.perf_counter() + seconds
    for _ in range(2):  # the first calls choose kernels
        one @ one
    while time.perf_counter() < until or not best:
        before = watch.seconds()["product"]
        with watch.phase("product"):
            one @ one
        took = watch.seconds()["product"] - before
        best = max(best, 2 * side**3 / took)
    return best


def data_advice(report: dict[str, float], workers: int) -> str:
    """What to set where the steps waited for their data; empty where they hardly did."""
    if report["time_data"] <= STARVED:
        return ""
    return (
        f"[yellow]note[/] {report['time_data']:.0%} of the time was spent waiting for data: "
        f"raise workers (now {workers}), or cache_features: true where the tower is frozen\n"
    )


def report_table(report: dict[str, float]) -> Table:
    """The end-of-run report for the screen."""
    table = Table(title="the run", show_header=False)
    table.add_row("questions", f"{report['questions']:,} in {report['seconds']:,.0f} s")
    rate = f"{report['questions_per_second']:,.1f} questions, {report['tokens_per_second']:,.0f}"
    table.add_row("a second", f"{rate} tokens")
    share = f"{report['share_of_peak']:.0%} of {report['peak_gflops']:,.0f} GFLOP/s measured"
    table.add_row("peak", f"{share}; {report['llm_share_of_peak']:.0%} in the LLM's own time")
    shares = ", ".join(f"{phase} {report[f'time_{phase}']:.0%}" for phase in PHASES)
    table.add_row("time", shares)
    return table
