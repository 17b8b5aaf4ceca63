"""The composed model: pixels and tokens in, loss at the label rows or logits out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from face_mllm.model.attention import additive, tree_attention
from face_mllm.model.configuration import FaceMLLMConfig
from face_mllm.model.expert import append_token
from face_mllm.model.heads import head_logits, label_entropies, label_losses
from face_mllm.model.vision import image_tokens, vision_width


@dataclass
class FaceMLLMOutput(ModelOutput):
    """Output of the composed model.

    Attributes:
        loss: sum over label rows of weight * negative log likelihood (a sum, so that the caller
            divides by the weight of the whole accumulated batch).
        logits: [B, T or kept, vocabulary], or at label rows only [L, vocabulary]; None where a
            loss was made chunk by chunk.
        past_key_values: cache of the LLM, when asked for.
        label_losses: unweighted loss of each label row [L], detached.
        label_entropies: entropy in nats at each label row [L], when asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    label_losses: torch.Tensor | None = None
    label_entropies: torch.Tensor | None = None


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
        self.register_module("expert", None)  # see face_mllm.experts.joined
        self.register_module("expert_head", None)
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
        states = image_tokens(
            self.vision_tower,
            pixel_values.to(tower_dtype),
            self.config.vision_layer,
            self.config.vision_select,
        )
        return self.project(states)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Project tower states [B, tokens, channels] to image tokens [B, tokens, llm width]."""
        return self.projector(states.to(next(self.projector.parameters()).dtype))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        expert_vectors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed tokens, image placeholders replaced in order by the pictures' image tokens.

        Where the model has an expert token, it stands after those of its picture.
        """
        is_image = input_ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if vision_states is not None:
            features = self.project(vision_states)
        elif pixel_values is not None:
            features = self.image_features(pixel_values)
        else:
            return embeds
        if self.expert is not None:
            if expert_vectors is None:
                raise ValueError("a model with an expert token needs expert_features of each face")
            token = self.expert(expert_vectors.to(self.expert.dtype))
            features = append_token(features, token)
        if is_image.sum() != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(is_image.sum())} image placeholders for {features.shape[0]} pictures of "
                f"{features.shape[1]} tokens"
            )
        return embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))

    def expert_vectors(
        self, features: torch.Tensor | None, seen: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The expert's vectors [F, D]: as they come, or made here by a head that trains along."""
        if features is None or self.expert_head is None:
            return features
        weight = next(self.expert_head.parameters())
        given = [None if x is None else x.to(weight.dtype) for x in (features, seen)]
        with torch.autocast(weight.device.type, enabled=False):  # as it answers on its own
            return self.expert_head.vectors(*given)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        subtree_ends: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        label_rows: torch.Tensor | None = None,
        label_targets: torch.Tensor | None = None,
        label_weights: torch.Tensor | None = None,
        with_entropy: bool = False,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        expert_features: torch.Tensor | None = None,
        expert_seen: torch.Tensor | None = None,
        expert_targets: torch.Tensor | None = None,
        expert_weights: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FaceMLLMOutput:
        """Run the model.

        Args:
            input_ids: [B, T] with ``image_token_id`` at image positions.
            pixel_values: [F, 3, H, W], a picture for each run of placeholders in order.
            vision_states: [F, tokens, channels] of the frozen tower instead of ``pixel_values``.
            attention_mask: [B, T] of ordinary sequences, or a ready mask [B, 1, T, T].
            position_ids: [B, T]; required with a 4-D mask or ``subtree_ends``.
            subtree_ends: [B, T] of tree rows, see :func:`face_mllm.tree.collate_trees`; the model
                makes the mask from them.
            label_rows: [L] flat indices into B*T whose logits are wanted; none means all.
            label_targets: [L] token ids; gives ``loss``.
            label_weights: [L] loss weights, default 1.
            with_entropy: also return ``label_entropies``.
            logits_to_keep: keep only the last so many positions (generation).
            expert_features: [F, D] of each picture's expert: its vectors, or what a head that
                trains along makes them of, together with ``expert_seen``.
            expert_targets, expert_weights: [F] class of each face and the weight of the expert's
                own loss there, added to ``loss``; 0 where the class is unknown.
        """
        vectors = self.expert_vectors(expert_features, expert_seen)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixel_values, vision_states, vectors)
        attention_mask = self._attention(inputs_embeds, attention_mask, position_ids, subtree_ends)
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
        if label_targets is None:
            logits = head_logits(self.language_model, hidden)
            return FaceMLLMOutput(logits=logits, past_key_values=decoded.past_key_values)
        losses, label_logits = label_losses(self.language_model, hidden, label_targets)
        loss = (losses if label_weights is None else losses * label_weights).sum()
        if expert_weights is not None and vectors is not None:
            with torch.autocast(vectors.device.type, enabled=False):
                own = self.expert_head.face_losses(vectors, expert_targets)
            loss = loss + (own * expert_weights).sum().to(loss)
        return FaceMLLMOutput(
            loss=loss,
            logits=label_logits,
            past_key_values=decoded.past_key_values,
            label_losses=losses.detach(),
            label_entropies=label_entropies(self.language_model, hidden) if with_entropy else None,
        )

    def _attention(
        self,
        embeds: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        subtree_ends: torch.Tensor | None,
    ) -> Any:
        """The decoder's ``attention_mask``: an ordinary one, or that of tree rows."""
        if subtree_ends is None and (mask is None or mask.dim() != 4):
            return mask
        if positions is None:
            raise ValueError("tree rows without position_ids give silently wrong answers")
        if subtree_ends is not None:
            config = self.language_model.config
            return tree_attention(config, subtree_ends, positions, embeds.dtype)
        assert mask is not None
        return additive(mask, embeds.dtype)
