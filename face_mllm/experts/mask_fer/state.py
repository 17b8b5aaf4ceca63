"""Resumable checkpoints of a run: every tensor under one level of names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from face_mllm.errors import UserError


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
    model.load_state_dict(_under(flat, "model."))
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _under(flat, "optimizer.").items():
        index, slot = name.split(".")
        slots.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return _under(flat, "best.")


def _under(flat: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): v for name, v in flat.items() if name.startswith(prefix)}


def save_state(path: Path, flat: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; ``about`` travels as json."""
    partial = path.with_name(f".{path.name}.partial")
    save_file(flat, partial, metadata={"about": json.dumps(about)})
    os.replace(partial, path)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        UserError: missing, or no checkpoint of this trainer.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a mask-FER checkpoint ({error})",
            "set resume: never to start anew, or give the right file",
        ) from error
