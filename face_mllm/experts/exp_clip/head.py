"""The head: one bias-free linear layer, read from our folder or from a released checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from face_mllm.errors import UserError

HEAD_FILE = "exp_clip.safetensors"
WEIGHT = "mlp.weight"  # the name in the released checkpoints, and in ours


class ExpClipHead(nn.Module):
    """``x -> W x`` from CLIP's joint space into the teacher's; both modalities go through it.

    Args:
        clip_width: width of CLIP's joint space (512 or 768).
        teacher_width: width of the teacher's feature (4096 for Flan-T5-XXL).
        seed: of the first weights (torch's default initialisation), or None to leave the
            global generator to decide.
    """

    def __init__(self, clip_width: int, teacher_width: int, seed: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.mlp = nn.Linear(clip_width, teacher_width, bias=False)

    @property
    def clip_width(self) -> int:
        """Width of what goes in."""
        return self.mlp.in_features

    @property
    def teacher_width(self) -> int:
        """Width of what comes out."""
        return self.mlp.out_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project [..., clip_width] to [..., teacher_width]; nothing is normalised."""
        return self.mlp(features)


def load_head(path: Path | str) -> ExpClipHead:
    """Read a head from an expert folder, a safetensors file or a torch checkpoint.

    Args:
        path: a torch checkpoint is read without running any code it may hold; its weight may be
            wrapped (``state_dict``, ``module.``) as training scripts do.

    Raises:
        UserError: no such file, not a checkpoint, or no finite ``mlp.weight`` matrix inside.
    """
    path = Path(path)
    file = path / HEAD_FILE if path.is_dir() else path
    weight = _find_weight(_read(file))
    if weight is None or weight.dim() != 2:
        raise UserError(f"{file}: holds no matrix {WEIGHT}", "give a checkpoint of Exp-CLIP")
    if not torch.isfinite(weight).all():
        raise UserError(f"{file}: {WEIGHT} holds numbers that are not finite", "get it again")
    head = ExpClipHead(weight.shape[1], weight.shape[0])
    head.load_state_dict({WEIGHT: weight.float()})
    return head.eval()


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file", "give an Exp-CLIP folder or checkpoint") from error
    except Exception as error:  # what is no pickle makes the unpickler raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not a readable checkpoint ({reason})", "get it again") from error
    return loaded if isinstance(loaded, Mapping) else {}


def _find_weight(state: Mapping[str, Any]) -> torch.Tensor | None:
    for key, value in state.items():
        if isinstance(value, Mapping):
            found = _find_weight(value)
            if found is not None:
                return found
        elif isinstance(value, torch.Tensor) and str(key).removeprefix("module.") == WEIGHT:
            return value
    return None
