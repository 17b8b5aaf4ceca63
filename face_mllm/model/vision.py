"""Vision towers: any Hugging Face ViT or CNN as a sequence of image tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from face_mllm.errors import UserError, brief

HAS_CLASS_TOKEN = ("clip_vision_model", "vit", "deit", "dinov2", "chinese_clip_vision_model")


def vision_width(config: PretrainedConfig, layer: int) -> int:
    """Channels of the hidden state that feeds the projector."""
    if hasattr(config, "hidden_sizes"):  # CNN: one width per stage
        return config.hidden_sizes[layer] if layer < 0 else config.hidden_sizes[max(layer - 1, 0)]
    return config.hidden_size


def image_tokens(
    tower: PreTrainedModel, pixels: torch.Tensor, layer: int, select: str
) -> torch.Tensor:
    """Run the tower and lay its hidden state out as tokens.

    Args:
        tower: a ViT-like model (token states) or a CNN (maps).
        pixels: [batch, 3, H, W], normalised as the tower's processor says.
        layer: index into the tower's hidden states.
        select: ``patch`` or ``full`` (see :class:`FaceMLLMConfig`).

    Returns:
        [batch, tokens, channels].
    """
    states = tower(pixels, output_hidden_states=True).hidden_states[layer]
    return as_tokens(tower, states, select)


def as_tokens(tower: PreTrainedModel, states: torch.Tensor, select: str) -> torch.Tensor:
    """A hidden state the tower has given, [batch, tokens, D] or a map, laid out as tokens."""
    if states.dim() == 4:  # CNN map [batch, channels, h, w]
        cells = states.flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], 1) if select == "full" else cells
    if select == "patch" and tower.config.model_type in HAS_CLASS_TOKEN:
        return states[:, 1:]
    return states


def pooled_features(tower: PreTrainedModel, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """Frozen features of a face for probes and experts: mean over cells or tokens, [batch, D]."""
    states = tower(pixels, output_hidden_states=True).hidden_states[layer]
    return states.flatten(2).mean(2) if states.dim() == 4 else states.mean(1)


def count_image_tokens(
    tower: PreTrainedModel, size: tuple[int, int], layer: int, select: str
) -> int:
    """Number of tokens one picture becomes, found by running the tower on a blank one."""
    parameter = next(tower.parameters())
    blank = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        return image_tokens(tower, blank, layer, select).shape[1]


def load_vision_tower(folder: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the image tower of a CLIP, SigLIP or dual-encoder folder, or a bare vision model."""
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a vision model this transformers version can load ({brief(error)})",
            "give a Hugging Face CLIP, SigLIP, ViT or ResNet folder or id",
        ) from error
    tower = getattr(model, "vision_model", model)
    if not hasattr(tower, "config") or (tower.config is config and config.model_type == "clip"):
        tower.config = config.vision_config
    return tower
