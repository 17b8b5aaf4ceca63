"""Both sides of against_trl.py on the same questions in fp32: equal loss, equal gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from against_trl_parts import Parts, canonical, stage
from against_trl_sides import plain_collator, trl_trainer

from face_mllm.hardware import for_precision
from face_mllm.model.lora import fuse_lora
from face_mllm.rows import FaceRows, RowCollator, model_inputs
from face_mllm.stages import apply_freeze
from face_mllm.train import assemble
from face_mllm.verify import Gradients, difference, gradients


def check(parts: Parts, folder: Path, questions: int, faces: int) -> dict[str, Any]:
    """Mean loss and gradients of all faces: our tree rows, TRL's batch and the plain one."""
    mine, my_gradients = our_step(parts, folder, questions, faces)
    rivals = rival_steps(parts, folder, questions * faces)
    return {
        "questions": questions * faces,
        "loss": mine,
        "rivals": {name: loss for name, (loss, _) in rivals.items()},
        "loss_difference": max(abs(loss - mine) / mine for loss, _ in rivals.values()),
        "gradient_difference": max(difference(my_gradients, g) for _, g in rivals.values()),
    }


def our_step(parts: Parts, folder: Path, questions: int, faces: int) -> tuple[float, Gradients]:
    """The stage's first batch through our model."""
    config = stage(parts, folder / "ours", questions)
    _, model, processor = assemble(config, for_precision(config.precision))
    apply_freeze(model, config)
    fuse_lora(model)
    set_lora(model)
    rows = FaceRows.from_stage(config, processor)
    batch = RowCollator.from_stage(config, model, processor)([rows[n] for n in range(faces)])
    loss = model.train()(**model_inputs(batch)).loss / batch["label_weights"].sum()
    return loss.item(), {canonical(name): g for name, g in gradients(model, loss).items()}


def rival_steps(parts: Parts, folder: Path, count: int) -> dict[str, tuple[float, Gradients]]:
    """All conversations as one batch of each rival, through its own collator and loss."""
    trainer = trl_trainer(parts, folder, count, 1, "sdpa")
    items = [trainer.train_dataset[number] for number in range(count)]
    plain = plain_collator(trainer.processing_class)([dict(item) for item in items])
    model = trainer.model.train()
    set_lora(model)
    found = {}
    for name, batch in (("trl", trainer.data_collator(items)), ("plain", plain)):
        loss = trainer.compute_loss(model, dict(batch))
        found[name] = loss.item(), {canonical(n): g for n, g in gradients(model, loss).items()}
    return found


def set_lora(model: torch.nn.Module) -> None:
    """The same LoRA weights on both sides, B not zero, or A would have no gradient."""
    named = [(canonical(n), p) for n, p in model.named_parameters() if "lora_" in n]
    draw = torch.Generator().manual_seed(0)
    for _, parameter in sorted(named, key=lambda pair: pair[0]):
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
