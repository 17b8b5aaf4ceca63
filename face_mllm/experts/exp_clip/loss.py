"""Symmetric InfoNCE between projected CLIP features and the teacher's, negatives of all processes.

    z_i = norm(W f_i),  t_i = norm(teacher_i),  L = (CE(s z t^T) + CE(s t z^T)) / 2

with the pair on the diagonal and ``s`` CLIP's own temperature, frozen (arXiv 2405.19100).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.nn import functional


class Contrast(NamedTuple):
    """Loss over the whole batch of all processes, and how often the own teacher came first."""

    loss: torch.Tensor
    top1: torch.Tensor


def contrast(projected: torch.Tensor, teacher: torch.Tensor, scale: float) -> Contrast:
    """Compare every projected feature with every teacher feature of all processes.

    The value is the same on every process; its gradient reaches the local rows only, so the
    gradients of the processes add up to that of one process (:func:`sum_gradients`).

    Args:
        projected: [n, D] of this process, any length; the gradient's way.
        teacher: [n, D], the same faces in the same order.
        scale: inverse temperature.
    """
    z = gather_rows(functional.normalize(projected, dim=-1))
    t = gather_rows(functional.normalize(teacher, dim=-1))
    logits = scale * z @ t.T
    own = torch.arange(len(logits), device=logits.device)
    loss = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
    return Contrast(0.5 * loss, (logits.detach().argmax(1) == own).float().mean())


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of all processes in order of rank; only the local ones carry a gradient."""
    rank, processes = world()
    if processes == 1:
        return rows
    shards = [torch.empty_like(rows) for _ in range(processes)]
    distributed.all_gather(shards, rows.detach().contiguous())
    shards[rank] = rows
    return torch.cat(shards)


def sum_gradients(module: nn.Module) -> None:
    """Add up the gradients of all processes: each holds its rows' share of the whole."""
    if world()[1] == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
