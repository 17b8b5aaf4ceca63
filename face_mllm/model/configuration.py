"""Configuration of the composed model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig


class FaceMLLMConfig(PretrainedConfig):
    """Vision tower + 2-layer GELU projector + causal LLM (LLaVA-1.5's arrangement).

    Args:
        vision_config: configuration (or its dict) of any Hugging Face vision tower.
        text_config: configuration (or its dict) of any Hugging Face causal LLM.
        vision_layer: which hidden state feeds the projector; -1 last, -2 as LLaVA-1.5.
        vision_select: ``patch`` drops a ViT's class token; ``full`` keeps it, and puts the mean
            of a CNN map in front of its cells.
        image_tokens: number of image tokens a picture becomes.
        image_token_id: placeholder id in ``input_ids``; lies outside the LLM's vocabulary.
        projector_hidden: width between the projector's two layers, 0 for the LLM's width.
    """

    model_type = "face_mllm"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PretrainedConfig | dict | None = None,
        text_config: PretrainedConfig | dict | None = None,
        vision_layer: int = -1,
        vision_select: str = "full",
        image_tokens: int = 0,
        image_token_id: int = -1,
        projector_hidden: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(vision_config, "clip_vision_model")
        self.text_config = _as_config(text_config, "llama")
        self.vision_layer = vision_layer
        self.vision_select = vision_select
        self.image_tokens = image_tokens
        self.image_token_id = image_token_id
        self.projector_hidden = projector_hidden
        # the base class would otherwise reset already loaded parts to no attention implementation
        attention = {
            "": self.text_config._attn_implementation,
            "text_config": self.text_config._attn_implementation,
            "vision_config": self.vision_config._attn_implementation,
        }
        if any(attention.values()):
            kwargs.setdefault("attn_implementation", attention)
        super().__init__(**kwargs)
        self.tie_word_embeddings = False  # ties inside the LLM are the LLM's own affair


def _as_config(config: PretrainedConfig | dict | None, default_type: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    config = dict(config or {})
    return AutoConfig.for_model(config.pop("model_type", default_type), **config)
