"""Per-part learning rates, a rate of 0, and the update that runs."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.optim import build_optimizer, choose_update
from face_mllm.stages import add_lora, apply_freeze

BASE = {"stage": "s", "data": "d", "out": "o"}
PARTS = {"vision": {"model": "v"}, "projector": {}, "llm": {"model": "l"}}


def stage(vision=(), projector=(), llm=(), **settings):
    parts = dict(zip(PARTS, (vision, projector, llm), strict=True))
    parts = {part: {**PARTS[part], **dict(changes)} for part, changes in parts.items()}
    return StageConfig.model_validate({**BASE, **parts, **settings})


def test_each_part_moves_by_its_own_rate(make_model):
    """Adam's first step moves every weight by its rate, whatever the gradient."""
    config = stage(
        vision={"train": "full", "learning_rate": 1e-3},
        projector={"learning_rate": 1e-2},
        llm={"train": "lora"},
        learning_rate=1e-1,
    )
    model, _ = make_model("clip")
    add_lora(model, config.llm.lora)
    apply_freeze(model, config)
    optimizer, _ = build_optimizer(model, config.part_rates(), 0.0, (0.9, 0.99), "auto")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter).sign()
    optimizer.step()
    wanted = {"vision_tower": 1e-3, "projector": 1e-2, "language_model": 1e-1}
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).abs()
        rate = wanted[name.split(".")[0]] if parameter.requires_grad else 0.0
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-6)


def test_a_rate_of_zero_is_frozen(make_model):
    config = stage(
        vision={"train": "full", "learning_rate": 0}, llm={"train": "lora", "learning_rate": 0}
    )
    assert config.part_trainings() == {"vision": "frozen", "projector": "full", "llm": "frozen"}
    model, _ = make_model()
    rows = {row.part: row for row in apply_freeze(model, config)}
    assert rows["vision"].trainable == rows["llm"].trainable == 0
    with pytest.raises(UserError, match="nothing would train"):
        apply_freeze(model, stage(learning_rate=0))


def test_a_stage_rate_of_zero_leaves_the_parts_with_a_rate_of_their_own():
    config = stage(projector={"learning_rate": 1e-4}, llm={"train": "lora"}, learning_rate=0)
    assert config.part_trainings() == {"vision": "frozen", "projector": "full", "llm": "frozen"}


def test_a_warm_start_of_a_frozen_projector_is_refused():
    with pytest.raises(ValidationError, match="frozen projector"):
        stage(projector={"lexical_steps": 5, "learning_rate": 0}, llm={"train": "lora"})


@pytest.mark.parametrize("update", ["auto", "fused", "foreach", "single"])
def test_every_update_is_adamw_and_vectors_do_not_decay(update):
    """Against torch's plain loop: matrices decay, biases do not."""
    model = nn.Module()
    model.projector = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.projector.state_dict())
    ours, words = build_optimizer(model, {"projector": 0.1}, 0.5, (0.9, 0.99), update)
    assert words.startswith("fused" if update == "auto" else update)
    groups = [
        {"params": [twin.weight], "weight_decay": 0.5},
        {"params": [twin.bias], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99), foreach=False)
    for _ in range(3):
        for mine, theirs in zip(model.projector.parameters(), twin.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        ours.step()
        plain.step()
    torch.testing.assert_close(model.projector.weight, twin.weight)
    torch.testing.assert_close(model.projector.bias, twin.bias)


def test_fused_where_the_device_has_none_is_refused():
    like = [torch.zeros(2, device="meta")]
    with pytest.raises(UserError, match="optimizer: auto"):
        choose_update("fused", like)
    assert choose_update("auto", like)[1].startswith("foreach")
