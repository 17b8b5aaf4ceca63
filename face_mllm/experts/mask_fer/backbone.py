"""What makes the mask: a trained ResNet, or a light head on frozen patch tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel

from face_mllm.errors import UserError
from face_mllm.experts.mask_fer.config import MaskSettings
from face_mllm.experts.preflight import WEIGHT_FILES
from face_mllm.model.vision import load_vision_tower
from face_mllm.references import resolve

# torchvision's names of a ResNet's weights -> Hugging Face's
_RENAMES = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)
_BLOCK = re.compile(r"^layer(\d)\.(\d+)\.(.*)$")
_LAYER = re.compile(r"^(conv|bn)(\d)\.")


class ResNetMask(nn.Module):
    """Mask logits [N, width of the last stage]: the global average of a ResNet's last map."""

    reads_tokens = False

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.resnet: Any = ResNetModel(config)
        self.width: int = config.hidden_sizes[-1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mask logits of normalised pixels [N, 3, S, S]."""
        return self.resnet(pixels).last_hidden_state.mean((2, 3))


class PatchHeadMask(nn.Module):
    """The variant without a second backbone: an MLP on frozen CLIP patch tokens, averaged."""

    reads_tokens = True

    def __init__(self, token_width: int, hidden: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.LayerNorm(token_width),
            nn.Linear(token_width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mask logits of tokens [N, T, C]."""
        # the mean goes through the last layer, so that one reads a face instead of every token
        return self.layers[-1](self.layers[:-1](tokens).mean(1))


class Match(nn.Module):
    """Mask width to CLIP's width: nothing, a learned linear layer, or the paper's plain mean."""

    def __init__(self, given: int, wanted: int, how: str) -> None:
        super().__init__()
        self.wanted = wanted
        learned = given != wanted and how == "linear"
        self.linear = nn.Linear(given, wanted) if learned else None

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        """[N, given] -> [N, wanted]."""
        if self.linear is not None:
            return self.linear(mask)
        if mask.shape[-1] == self.wanted:
            return mask
        return functional.adaptive_avg_pool1d(mask[:, None], self.wanted)[:, 0]


def resnet_config(settings: MaskSettings) -> ResNetConfig:
    """Configuration of the mask's ResNet: of the referenced model, else of the settings."""
    if settings.weights and not settings.weights.endswith(WEIGHT_FILES):
        return _referenced(settings.weights).config
    return ResNetConfig(
        embedding_size=settings.embedding_size,
        hidden_sizes=list(settings.hidden_sizes),
        depths=list(settings.depths),
        layer_type=settings.layer_type,
    )


def load_start(mask: ResNetMask, reference: str) -> None:
    """Load first weights into the mask's ResNet by reference.

    Args:
        mask: built from :func:`resnet_config` of the same reference.
        reference: see :class:`MaskSettings`.

    Raises:
        UserError: no such weights, or of another shape.
    """
    if not reference.endswith(WEIGHT_FILES):
        mask.resnet.load_state_dict(_referenced(reference).state_dict())
        return
    state = torchvision_state(_read(Path(reference).expanduser()))
    try:
        result = mask.resnet.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{reference}: {str(error).splitlines()[-1].strip()}",
            "set mask.hidden_sizes, depths and layer_type as these weights need",
        ) from error
    missing = [name for name in result.missing_keys if "num_batches_tracked" not in name]
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise UserError(
            f"{reference}: does not fit this ResNet ({len(missing)} weights missing, "
            f"{len(result.unexpected_keys)} foreign, such as {odd})",
            "set mask.hidden_sizes, depths and layer_type as these weights need",
        )


def torchvision_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's ResNet weights to Hugging Face's; the classifier is left out."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name.startswith(("fc.", "feature.")):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if block := _BLOCK.match(name):
            stage, layer, rest = int(block[1]) - 1, block[2], _LAYER.sub(_part, block[3])
            name = f"encoder.stages.{stage}.layers.{layer}.{rest}"
        renamed[name] = tensor
    return renamed


def _part(match: re.Match[str]) -> str:
    kind = "convolution" if match[1] == "conv" else "normalization"
    return f"layer.{int(match[2]) - 1}.{kind}."


def _referenced(reference: str) -> Any:
    tower = load_vision_tower(resolve(reference))
    if not isinstance(tower, ResNetModel):
        raise UserError(
            f"{reference}: a {tower.config.model_type} model, not a ResNet",
            "give a Hugging Face ResNet, or mask.kind: patch_head, which needs no second backbone",
        )
    return tower


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs nothing inside
        return state.get("state_dict", state)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as weights ({type(error).__name__})",
            "give a .safetensors or plain .pth state dict",
        ) from error
