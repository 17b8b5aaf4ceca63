"""The state of a small training run as one safetensors file, settings beside the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from face_mllm.errors import UserError
from face_mllm.outputs import whole_file


def save_state(path: Path, flat: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; ``about`` travels as json."""
    with whole_file(path) as partial:
        save_file(flat, partial, metadata={"about": json.dumps(about)})


def load_state(path: Path, trainer: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint of :func:`save_state`; ``trainer`` is what the error calls it.

    Raises:
        UserError: when the file is missing or is no such checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: not a {trainer} checkpoint ({error})",
            "set resume: never to start anew, or give the right file",
        ) from error


def under(flat: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): v for name, v in flat.items() if name.startswith(prefix)}
