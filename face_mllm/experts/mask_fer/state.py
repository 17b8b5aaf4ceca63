"""Resumable checkpoints of a run: every tensor under one level of names."""

from __future__ import annotations

import torch
from torch import nn

from face_mllm.flat_state import under


def flat_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return model, optimiser slots and the best epoch's weights."""
    flat = {f"model.{name}": value for name, value in model.state_dict().items()}
    flat |= {f"best.{name}": value for name, value in best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    return {name: value.detach().clone().contiguous().cpu() for name, value in flat.items()}


def restore(
    flat: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Put the tensors of :func:`flat_state` back; returns the best epoch's weights."""
    model.load_state_dict(under(flat, "model."))
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in under(flat, "optimizer.").items():
        index, slot = name.split(".")
        slots.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return under(flat, "best.")
