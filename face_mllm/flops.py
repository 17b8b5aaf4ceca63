"""Operations of a training step by formula: two for each weight and token, and the attention's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from face_mllm.estimate import Decoder, Load, look, meta_tower, projector_shape
from face_mllm.model import FaceMLLMForConditionalGeneration


@dataclass(frozen=True)
class StepFlops:
    """Operations of one micro-batch, forward and backward, by part.

    Attributes:
        tower, projector, llm: useful operations; what checkpointing repeats is not in them.
        repeated: the forward passes that checkpointing runs again.
    """

    tower: int
    projector: int
    llm: int
    repeated: int = 0

    @property
    def useful(self) -> int:
        """All but the repeated ones."""
        return self.tower + self.projector + self.llm


class StepFormula:
    """Operations of a model's micro-batches of any size.

    Args:
        model: composed model, on any device, after ``apply_freeze``.
        decoder: its LLM.
        trainings: part -> frozen | full | lora.
    """

    def __init__(
        self,
        model: FaceMLLMForConditionalGeneration,
        decoder: Decoder,
        trainings: Mapping[str, str],
    ) -> None:
        self.decoder = decoder
        self.trainings = dict(trainings)
        self.pictures = model.config.image_tokens  # tokens of one
        inner, width = projector_shape(model)
        self.first, self.second = inner * width, inner * decoder.hidden
        self.look = picture_flops(model)

    def __call__(self, load: Load, faces: int | None = None) -> StepFlops:
        """Operations of one micro-batch.

        Args:
            load: the micro-batch.
            faces: in all its rows; None for one a row.
        """
        faces = load.rows if faces is None else faces
        passes = {"frozen": 1, "lora": 2, "full": 3}[self.trainings["vision"]]
        return StepFlops(
            tower=faces * self.look * passes,
            projector=self._projector(faces * self.pictures),
            llm=3 * self._attention(load) + self._products(load) + self._head(load),
            repeated=load.checkpointing * (self._attention(load) + self._forward(load)),
        )

    def _projector(self, tokens: int) -> int:
        weights = self.first + self.second
        backward = weights * (self.trainings["projector"] == "full")
        if self.trainings["vision"] != "frozen":
            backward += weights
        elif backward:
            backward += self.second
        return 2 * tokens * (weights + backward)

    def _attention(self, load: Load) -> int:
        width = self.decoder.heads * self.decoder.head_dim
        pairs = load.rows * load.tokens**2 if load.pairs is None else load.pairs
        return self.decoder.layers * 4 * pairs * width

    def _forward(self, load: Load) -> int:
        weights = self.decoder.product_weights + self.decoder.lora_weights
        return 2 * load.rows * load.tokens * weights

    def _products(self, load: Load) -> int:
        trained = self.decoder.lora_weights if self.trainings["llm"] == "lora" else 0
        if self.trainings["llm"] == "full":
            trained = self.decoder.product_weights
        return 2 * self._forward(load) + 2 * load.rows * load.tokens * trained

    def _head(self, load: Load) -> int:
        passes = 3 if self.trainings["llm"] == "full" else 2
        return passes * 2 * load.labels * self.decoder.hidden * self.decoder.vocabulary


def picture_flops(model: FaceMLLMForConditionalGeneration) -> int:
    """Operations of the tower's forward pass on one picture, counted on the meta device."""
    tower = meta_tower(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        look(model, tower)
    return int(counter.get_total_flops())
