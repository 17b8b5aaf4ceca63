"""The two towers as one Hugging Face dual encoder, and the folder it is shipped in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from face_mllm.errors import UserError
from face_mllm.face_clip.config import FaceClipConfig, ImageTowerConfig, TextTowerConfig

CLIP_TEMPERATURE = 0.07  # start of the learned temperature, as CLIP
MAX_LOGIT_SCALE = math.log(100.0)  # CLIP clips there


class FaceClipModel(VisionTextDualEncoderModel):
    """`VisionTextDualEncoderModel` whose image tower may be a CNN.

    A Hugging Face ResNet pools to [batch, channels, 1, 1], which the dual encoder's projection
    cannot take; here the pooled map is flattened. Weights and their names are the parent's, so
    the stock class loads the same folder.
    """

    def __init__(self, config=None, vision_model=None, text_model=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(config, vision_model, text_model)
        if isinstance(self.vision_model, ResNetModel):
            flat: Any = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.vision_model.pooler = flat


def build_model(config: FaceClipConfig, tokenizer: PreTrainedTokenizerFast) -> FaceClipModel:
    """Return a freshly initialised model (fp32) for the config and the tokenizer's vocabulary."""
    vision = _vision_config(config.image)
    text = _text_config(config.text, tokenizer)
    joint = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision,
        text,
        projection_dim=config.projection,
        logit_scale_init_value=math.log(1 / CLIP_TEMPERATURE),
    )
    return FaceClipModel(joint, ResNetModel(vision), CLIPTextModel(text))


def _vision_config(tower: ImageTowerConfig) -> ResNetConfig:
    # the dual encoder sizes its projection by hidden_size, which a ResNet's config lacks
    extra: Any = {"image_size": tower.size, "hidden_size": tower.hidden_sizes[-1]}
    return ResNetConfig(
        embedding_size=tower.stem,
        hidden_sizes=list(tower.hidden_sizes),
        depths=list(tower.depths),
        layer_type="basic",
        **extra,
    )


def _text_config(tower: TextTowerConfig, tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        max_position_embeddings=tower.max_tokens,
        projection_dim=tower.width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def image_processor(tower: ImageTowerConfig) -> CLIPImageProcessorPil:
    """Return the processor of any photograph: resize, central crop, scale to about +-1."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": tower.resize},
        crop_size={"height": tower.size, "width": tower.size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def save_folder(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    processor: CLIPImageProcessorPil,
    folder: Path,
    dtype: torch.dtype,
) -> None:
    """Write a plain Hugging Face folder; the weights are stored in ``dtype``.

    Batch-norm statistics and all else go into one model.safetensors; the given model stays as is.
    """
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_face_clip(folder: Path | str, dtype: torch.dtype = torch.float32) -> FaceClipModel:
    """Load a dual-encoder folder for zero-shot use, in eval mode.

    Raises:
        UserError: when the folder holds no such model.
    """
    try:
        return FaceClipModel.from_pretrained(folder, dtype=dtype).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a face-clip folder ({error})",
            "give a folder written by `face-mllm train stage_configs/embedded/face_clip.yaml`",
        ) from error
