"""``verify_packing``: the first batch as packed tree rows against separate passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from transformers.integrations import is_deepspeed_zero3_enabled

from data_pipeline.records import QA
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.hardware import Hardware, lent
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.heads import token_losses
from face_mllm.model.processing import FaceProcessor
from face_mllm.rows import FaceRows, RowCollator, RowItem, model_inputs, picture_key

console = Console(stderr=True)
# largest relative difference of loss and of gradient: bf16 rounds each product to 3 digits
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (1e-2, 1e-1)}

Gradients = dict[str, torch.Tensor]


def verify_packing(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    collator: RowCollator,
    rows: FaceRows,
    stage: StageConfig,
    hardware: Hardware,
) -> None:
    """Compare loss and gradients of the first batch with one ordinary pass per question.

    The separate passes go through the LLM's own forward, with its own mask, positions and head.
    Dropout is off meanwhile; no random number is drawn and no weight changes.

    Raises:
        UserError: they differ, or the weights are split over processes.
    """
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "verify_packing needs whole weights, which ZeRO-3 splits",
            "verify once in one process (max_steps=1), then train with verify_packing: false",
        )
    items = [rows[visit] for visit in range(min(stage.faces_per_device, rows.visits))]
    with (
        lent(model, hardware.device),
        _evaluating(model),
        torch.autocast(hardware.device.split(":")[0], torch.bfloat16, enabled=hardware.autocast),
    ):
        batch = {key: value.to(model.device) for key, value in collator(items).items()}
        batch.pop("expert_weights", None)  # the expert's own loss knows no rows
        packed = model(**model_inputs(batch)).loss
        packed_gradients = gradients(model, packed)
        separate, separate_gradients = separate_passes(model, processor, rows, items)
    loss = abs(packed.item() - separate) / max(abs(separate), 1e-12)
    gradient = difference(packed_gradients, separate_gradients)
    limits = TOLERANCE[hardware.dtype]
    words = f"loss {packed.item():.6g} against {separate:.6g}, gradients differ by {gradient:.1e}"
    if not (loss <= limits[0] and gradient <= limits[1]):
        raise UserError(
            f"packed rows are not the separate passes: {words}",
            "this LLM does not run tree rows exactly here; try attention: eager, precision: fp32 "
            "or another LLM",
        )
    console.print(f"[dim]packed rows equal separate passes: {words}")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        model.zero_grad()


def separate_passes(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    rows: FaceRows,
    items: Sequence[RowItem],
) -> tuple[float, Gradients]:
    """Loss and gradients of the same questions, one ordinary pass each."""
    total = 0.0
    sums: Gradients = {}
    for item in items:
        pictures = item.picture[None].to(model.device)
        asked, _ = rows.drawn(rows.record(item.visit, item.face), item.visit, item.face)
        for qa in asked:
            loss = separate_loss(model, processor, qa, pictures, item.expert)
            total += loss.item()
            for name, value in gradients(model, loss).items():
                sums[name] = sums[name] + value if name in sums else value
    return total, sums


def separate_loss(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    qa: QA,
    pictures: torch.Tensor,
    expert: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Weighted loss of one question about one face as a conversation of its own."""
    branch, start = processor.branch_ids(qa.question, qa.answer)
    prefix = processor.prefix_ids()
    ids = torch.tensor([[*prefix, *branch]], device=pictures.device)
    first = len(prefix) + start
    given = {name: value[None].to(pictures.device) for name, value in (expert or {}).items()}
    vectors = model.expert_vectors(given.get("expert_features"), given.get("expert_seen"))
    seen = {picture_key(pictures): pictures}
    embeds = model.embed(ids[:, :-1], **seen, expert_vectors=vectors)
    logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits
    return qa.weight * token_losses(logits[0, first - 1 :], ids[0, first:]).sum()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> Gradients:
    """Gradient of each trained parameter that the loss reaches."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: value for name, value in zip(named, found, strict=True) if value is not None}


def difference(one: Gradients, other: Gradients) -> float:
    """Length of the difference of two gradients over the length of the second."""
    if one.keys() != other.keys():
        return float("inf")
    apart = sum((one[name] - other[name]).double().square().sum().item() for name in one)
    whole = sum(value.double().square().sum().item() for value in other.values())
    return (apart / max(whole, 1e-300)) ** 0.5
