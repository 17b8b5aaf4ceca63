"""The composed model: pixels and tokens in, loss at the label rows or logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from face_mllm.model.configuration import FaceMLLMConfig
from face_mllm.model.vision import image_tokens, vision_width


@dataclass
class FaceMLLMOutput(ModelOutput):
    """Output of the composed model.

    Attributes:
        loss: sum over label rows of weight * negative log likelihood (a sum, so that the caller
            divides by the weight of the whole accumulated batch).
        logits: [B, T or kept, vocabulary], or at label rows only [L, vocabulary].
        past_key_values: cache of the LLM, when asked for.
        label_losses: unweighted loss of each label row [L], detached.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    label_losses: torch.Tensor | None = None


class Projector(nn.Sequential):
    """LLaVA-1.5's ``mlp2x_gelu``: Linear, GELU, Linear from tower width to LLM width."""

    def __init__(self, vision_dim: int, llm_dim: int, hidden: int = 0) -> None:
        hidden = hidden or llm_dim
        super().__init__(nn.Linear(vision_dim, hidden), nn.GELU(), nn.Linear(hidden, llm_dim))


class FaceMLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision tower -> projector -> image tokens inside a causal LLM.

    Args:
        config: the composed configuration.
        vision_tower: an already loaded tower, else built from ``config.vision_config``.
        language_model: an already loaded causal LLM, else built from ``config.text_config``.
    """

    config_class = FaceMLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        config: FaceMLLMConfig,
        vision_tower: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_tower = vision_tower or AutoModel.from_config(config.vision_config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        width = vision_width(config.vision_config, config.vision_layer)
        self.projector = Projector(width, config.text_config.hidden_size, config.projector_hidden)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the parts to their own initialisation: the default one of torch or of the LLM."""

    def train(self, mode: bool = True) -> FaceMLLMForConditionalGeneration:
        """Set training mode; a frozen tower stays in eval, and so does its frozen BatchNorm.

        Running statistics that drift below an adapter would be in no artifact.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_tower.parameters()):
            self.vision_tower.eval()
        for module in self.vision_tower.modules():
            frozen = not any(parameter.requires_grad for parameter in module.parameters())
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and frozen:
                module.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """Token embedding of the LLM."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Language head of the LLM."""
        return self.language_model.get_output_embeddings()

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Project pictures [B, 3, H, W] to image tokens [B, tokens, llm width]."""
        tower_dtype = next(self.vision_tower.parameters()).dtype
        tokens = image_tokens(
            self.vision_tower,
            pixel_values.to(tower_dtype),
            self.config.vision_layer,
            self.config.vision_select,
        )
        return self.projector(tokens.to(next(self.projector.parameters()).dtype))

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Embed tokens, image placeholders replaced in order by the pictures' image tokens."""
        is_image = input_ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if pixel_values is None:
            return embeds
        features = self.image_features(pixel_values).to(embeds.dtype)
        if is_image.sum() != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(is_image.sum())} image placeholders for {features.shape[0]} pictures of "
                f"{features.shape[1]} tokens"
            )
        return embeds.masked_scatter(is_image.unsqueeze(-1), features)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        label_rows: torch.Tensor | None = None,
        label_targets: torch.Tensor | None = None,
        label_weights: torch.Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> FaceMLLMOutput:
        """Run the model.

        Args:
            input_ids: [B, T] with ``image_token_id`` at image positions.
            pixel_values: [B, 3, H, W].
            attention_mask: bool [B, 1, T, T] (tree rows) or [B, T] (ordinary sequences).
            position_ids: [B, T]; required with a 4-D mask.
            label_rows: [L] flat indices into B*T whose logits are wanted; none means all.
            label_targets: [L] token ids; gives ``loss``.
            label_weights: [L] loss weights, default 1.
            logits_to_keep: keep only the last so many positions (generation).
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixel_values)
        if attention_mask is not None and attention_mask.dim() == 4:
            if position_ids is None:
                raise ValueError("a tree mask without position_ids gives silently wrong answers")
            attention_mask = _additive(attention_mask, inputs_embeds.dtype)
        decoded = self.language_model.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = decoded.last_hidden_state
        if label_rows is not None:
            hidden = hidden.flatten(0, 1)[label_rows]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.get_output_embeddings()(hidden)
        if label_targets is None:
            return FaceMLLMOutput(logits=logits, past_key_values=decoded.past_key_values)
        losses = label_losses(logits, label_targets)
        loss = losses.sum() if label_weights is None else (losses * label_weights).sum()
        return FaceMLLMOutput(loss, logits, decoded.past_key_values, losses.detach())


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Boolean visibility as the additive mask every attention implementation accepts."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, torch.finfo(dtype).min
    )


def label_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log likelihoods [L] in fp32 (fp64 stays) of logits [L, V] and targets [L]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits, targets, reduction="none")
