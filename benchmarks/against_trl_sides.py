"""The sides of against_trl.py: ours, TRL's SFTTrainer, Hugging Face's Trainer, each in a process.

Each trains a few steps with its own collator, optimiser and loss and reports questions a second
after the first steps, and the peak of memory since training began.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from against_trl_parts import Parts, conversations, llava, stage
from matmul_peak import SMOLLM2, SQUARE, peak
from transformers import Trainer, TrainerCallback, TrainingArguments

from face_mllm.config import StageConfig
from face_mllm.estimate import Load, decoder_of
from face_mllm.flops import StepFormula
from face_mllm.hardware import for_precision
from face_mllm.model.lora import fuse_lora
from face_mllm.rows import COUNTS, FaceRows, RowCollator, model_inputs
from face_mllm.stages import apply_freeze
from face_mllm.train import assemble, build_trainer

GIB = 2**30
RATE = 1e-4


class Clock(TrainerCallback):
    """Time of each optimiser step, data loading included, and the memory since training began."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.stamps: list[tuple[float, float]] = []
        self.before = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.before = reset_peak(self.cuda)
        self._stamp()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._stamp()

    def _stamp(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.stamps.append((time.perf_counter(), time.process_time()))

    def figures(self, questions: float, warm_up: int) -> dict[str, float]:
        """Medians over the steps after the warm-up, of which each takes so many questions."""
        steps = list(zip(self.stamps[warm_up:], self.stamps[warm_up + 1 :], strict=False))
        wall = statistics.median(after[0] - before[0] for before, after in steps)
        processor = statistics.median(after[1] - before[1] for before, after in steps)
        return {
            "questions": questions,
            "seconds": wall,
            "processor_seconds": processor,
            "rate": questions / wall,
            "processor_rate": questions / processor,
            "peak_gib": peak_memory(self.cuda),
            "before_gib": self.before,
        }


def reset_peak(cuda: bool) -> float:
    """Forget the peak so far; returns GiB in use now."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / GIB
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts anew
    return _status("VmRSS")


def peak_memory(cuda: bool) -> float:
    """GiB at the peak: of the GPU's tensors, or of this process."""
    if cuda:
        return torch.cuda.max_memory_allocated() / GIB
    return _status("VmHWM")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak of the whole process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**20


def ours(parts: Parts, folder: Path, questions: int, batch: int, steps: int, **_: Any) -> Clock:
    """Our stage, ``batch`` faces a step with all their questions."""
    config = stage(
        parts,
        folder / "ours",
        questions,
        faces_per_device=batch,
        max_steps=steps,
        learning_rate=RATE,
        resume="never",
        rows_per_pass=0 if questions == 1 else 1,
        max_tokens=4096 if parts.device == "cuda" else 2048,
        pack=parts.device == "cuda",
    )
    hardware = for_precision(config.precision)
    artifact, model, processor = assemble(config, hardware)
    apply_freeze(model, config)
    rows = FaceRows.from_stage(config, processor)
    trainer = build_trainer(config, hardware, artifact, model, processor, rows, None)
    return train(trainer, parts.device)


def train(trainer: Trainer, device: str) -> Clock:
    """Run a trainer under a clock."""
    clock = Clock(device)
    trainer.add_callback(clock)
    trainer.train()
    return clock


def settings(parts: Parts, folder: Path, batch: int, steps: int) -> dict[str, Any]:
    """What both rivals are told; what is not here is as fast as they can."""
    return {
        "output_dir": str(folder / "rival"),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "bf16": parts.dtype == "bfloat16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": parts.device == "cpu",
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }


def trl_trainer(
    parts: Parts, folder: Path, batch: int, steps: int, attention: str, multi_turn: bool = False
) -> Any:
    """TRL's SFTTrainer on the same model; with ``multi_turn`` a face is one dialogue."""
    from trl import SFTConfig, SFTTrainer

    model, processor = llava(parts, attention)
    arguments = SFTConfig(
        **settings(parts, folder, batch, steps),
        gradient_checkpointing=False,
        max_length=None,
        completion_only_loss=not multi_turn,
        assistant_only_loss=multi_turn,
    )
    data = conversations(parts.data, multi_turn)
    return SFTTrainer(model, arguments, train_dataset=data, processing_class=processor)


def trl(parts: Parts, folder: Path, batch: int, steps: int, attention: str, **_: Any) -> Clock:
    """TRL, one conversation a question."""
    return train(trl_trainer(parts, folder, batch, steps, attention), parts.device)


def dialogue(parts: Parts, folder: Path, batch: int, steps: int, attention: str, **_: Any) -> Clock:
    """TRL, all questions of a face as turns of one dialogue: later ones read earlier answers."""
    return train(trl_trainer(parts, folder, batch, steps, attention, True), parts.device)


def plain(parts: Parts, folder: Path, batch: int, steps: int, attention: str, **_: Any) -> Clock:
    """Hugging Face's own Trainer with the usual padding collator."""
    model, processor = llava(parts, attention)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(parts, folder, batch, steps)),
        train_dataset=conversations(parts.data),
        data_collator=plain_collator(processor),
    )
    return train(trainer, parts.device)


def plain_collator(processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Whole texts padded to the longest, labels on the answers only."""

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = []
        for item in items:
            content = [{"type": "image"}, {"type": "text", "text": item["prompt"][0]["content"]}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", **_text(item)}]},
            ]
            texts.append(processor.apply_chat_template(messages, tokenize=False))
        pictures = [item["images"] for item in items]
        batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for row, item in enumerate(items):
            answer = processor.tokenizer(f"{_text(item)['text']}<|im_end|>").input_ids
            end = int(batch["attention_mask"][row].nonzero()[-1]) + 1
            labels[row, end - len(answer) : end] = torch.tensor(answer)
        return {**batch, "labels": labels}

    return collate


def _text(item: dict[str, Any]) -> dict[str, str]:
    return {"text": item["completion"][0]["content"]}


def llm_step(parts: Parts, folder: Path, questions: int, batch: int, steps: int, **_: Any) -> dict:
    """Share of the measured peak in our LLM's forward and backward of one pass.

    Only needed operations count: the frozen weights' two products a token, LoRA's three, the head
    at label rows, attention at visible pairs; padding and what is computed again do not. The peak
    is measured between the steps, with the products of these very layers.
    """
    config = stage(parts, folder / "ours", questions, learning_rate=RATE)
    hardware = for_precision(config.precision)
    _, model, processor = assemble(config, hardware)
    apply_freeze(model, config)
    fuse_lora(model)
    model.to(hardware.device).train()
    rows = FaceRows.from_stage(config, processor)
    collator = RowCollator.from_stage(config, model, processor)
    found = collator([rows[visit] for visit in range(batch)])
    operations = needed_operations(model, config, found["counts"])
    inputs = {key: value.to(model.device) for key, value in model_inputs(found).items()}
    tokens = inputs["input_ids"].numel()
    states = torch.randn(batch, model.config.image_tokens, model.projector[0].in_features)
    inputs["vision_states"] = states.to(model.device)
    del inputs["pixel_values"]
    cuda = parts.device == "cuda"
    alone = not cuda and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times, peaks = [], []
    hidden, inner = model.config.text_config.hidden_size, model.config.text_config.intermediate_size
    shapes = (*SMOLLM2, SQUARE) if hidden == 576 else ((hidden, hidden), (hidden, inner))
    for step in range(steps + 1):
        start = clock()
        with torch.autocast(parts.device, torch.bfloat16, enabled=hardware.autocast):
            loss = model(**inputs).loss
        loss.backward()
        if cuda:
            torch.cuda.synchronize()
        if step:
            times.append(clock() - start)
        peaks.append(peak(tokens, shapes, hardware.torch_dtype, parts.device, 0.1))
    seconds = statistics.median(times)
    return {
        "tokens": tokens,
        "gflop": operations / 1e9,
        "seconds": seconds,
        "gflops": operations / seconds / 1e9,
        "peak_gflops": statistics.median(peaks) / 1e9,
        "share": operations / seconds / statistics.median(peaks),
    }


def needed_operations(model: Any, config: StageConfig, counts: torch.Tensor) -> int:
    """Operations of the LLM's forward and backward that the result needs, as the meter counts."""
    count = dict(zip(COUNTS, counts.tolist(), strict=True))
    load = Load(1, count["tokens"], count["answer_tokens"], pairs=count["seen_pairs"])
    trainings = config.part_trainings()
    formula = StepFormula(model, decoder_of(model, trainings["llm"]), trainings)
    return formula(load, count["faces"]).llm


SIDES = {"ours": ours, "trl": trl, "plain": plain, "dialogue": dialogue}
