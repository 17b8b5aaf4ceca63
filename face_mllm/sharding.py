"""Whole tensors in and out of a model and optimiser that DDP, DeepSpeed or FSDP2 may have split.

Everything is keyed by parameter name, so what one way of sharding writes any other can read, on
any number of processes. The functions are collective: every process calls them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from face_mllm.distributed import is_main

Tensors = dict[str, torch.Tensor]
MARK = "|"  # between a parameter's name and the name of one of its optimiser states


def whole_weights(model: nn.Module, wanted: Callable[[str], bool]) -> Tensors:
    """Whole weights and buffers whose name is wanted, copied to process 0 ({} elsewhere)."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if wanted(name):
            whole = _whole_weight(tensor)
            if is_main():
                found[name] = whole.detach().to("cpu", copy=True).contiguous()
    return found


def _whole_weight(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if tensor.requires_grad and _zero_stage(tensor):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(tensor)
    if hasattr(tensor, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def _zero_stage(parameter: torch.Tensor) -> int:
    """3 where DeepSpeed has split the parameter, 2 where its optimiser state only, else 0."""
    if hasattr(parameter, "ds_id"):
        return 3
    return 2 if hasattr(parameter, "_hp_mapping") else 0


def align(model: nn.Module) -> None:
    """Move weights on the CPU to 64-byte borders, where safetensors' memory maps need not lie.

    Matrix products take other paths elsewhere: a little slower, and different in the last bit,
    so that the same step on one process and on two would not give the same loss.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimiser below the wrappers of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def whole_moments(model: nn.Module, optimizer: Any) -> Tensors:
    """Whole optimiser states ``{"parameter|state": tensor}`` on process 0 ({} elsewhere)."""
    found = {}
    _link_zero_states(getattr(optimizer, "optimizer", None))
    for name, parameter in _trained(model):
        for key, value in _moments_of(parameter, optimizer):
            if is_main():
                found[f"{name}{MARK}{key}"] = value.detach().to("cpu", copy=True).contiguous()
    return found


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, each) for name, each in model.named_parameters() if each.requires_grad)


def _moments_of(parameter: nn.Parameter, optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    base = innermost(optimizer)
    if not _zero_stage(parameter):
        for key, value in base.state.get(parameter, {}).items():
            value = torch.as_tensor(value)
            yield key, value.full_tensor() if isinstance(value, DTensor) else value
        return
    from deepspeed.utils import safe_get_full_optimizer_state

    for key, value in next(iter(base.state.values()), {}).items():
        if torch.is_tensor(value) and value.dim():
            yield key, safe_get_full_optimizer_state(parameter, key)
        else:  # the step count, one for all
            yield key, torch.as_tensor(value)


def put_moments(model: nn.Module, optimizer: Any, moments: Tensors) -> None:
    """Give an unused optimiser the states :func:`whole_moments` returned; all processes have them.

    Raises:
        KeyError: a trained parameter has no state among them.
    """
    states: dict[str, Tensors] = {}
    for joined, value in moments.items():
        name, key = joined.rsplit(MARK, 1)
        states.setdefault(name, {})[key] = value
    trained = list(_trained(model))
    if any(_zero_stage(parameter) for _, parameter in trained):
        _open_zero_states(optimizer.optimizer, states[trained[0][0]])
    for name, parameter in trained:
        _put(parameter, innermost(optimizer), states[name])


def _put(parameter: nn.Parameter, base: torch.optim.Optimizer, state: Tensors) -> None:
    if _zero_stage(parameter):
        from deepspeed.utils import safe_set_full_optimizer_state

        for key, value in state.items():
            if value.dim():
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
        return
    base.state[parameter] = {key: _laid_out(value, parameter) for key, value in state.items()}


def _laid_out(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A whole state as the parameter lies: split alike, on its device."""
    if value.shape != parameter.shape or not value.dim():
        return value.clone()  # a step count stays on the host
    if isinstance(parameter, DTensor):
        value = value.to(parameter.to_local().device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.to(parameter.device, copy=True)


def _open_zero_states(zero: Any, example: Tensors) -> None:
    """Create the flat states DeepSpeed would create in its first step, so they can be filled."""
    flats = getattr(zero, "fp32_partitioned_groups_flat", None)
    if flats is None:
        flats = zero.single_partition_of_fp32_groups
    for flat in flats:
        zero.optimizer.state[flat] = {
            key: torch.zeros_like(flat) if value.dim() else value.clone()
            for key, value in example.items()
        }
    _link_zero_states(zero)


def _link_zero_states(zero: Any) -> None:
    """Let ZeRO-2 find its states again: it links them after its first group of weights only."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
