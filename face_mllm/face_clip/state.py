"""What a run of training carries from step to step: averaged weights and resumable checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from face_mllm.flat_state import under


class Average:
    """Exponential moving average of a model's weights and batch-norm statistics.

    The decay starts low, so early averages are not dominated by the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after optimiser step ``step`` (from 1)."""
        decay = min(self.decay, step / (step + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def flat_state(
    model: nn.Module, heads: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return every tensor of a run under one level of names."""
    flat = {f"model.{name}": value for name, value in model.state_dict().items()}
    flat |= {f"heads.{name}": value for name, value in heads.state_dict().items()}
    flat |= {f"average.{name}": value for name, value in average.state.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    return {name: value.detach().contiguous().cpu() for name, value in flat.items()}


def restore(
    flat: dict[str, torch.Tensor],
    model: nn.Module,
    heads: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put the tensors of :func:`flat_state` back."""
    model.load_state_dict(under(flat, "model."))
    heads.load_state_dict(under(flat, "heads."))
    for name, value in under(flat, "average.").items():
        average.state[name].copy_(value)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in under(flat, "optimizer.").items():
        index, slot = name.split(".")
        if value.dim():  # the fused step walks raw memory: layouts must agree (channels last)
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        slots.setdefault(int(index), {})[slot] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
