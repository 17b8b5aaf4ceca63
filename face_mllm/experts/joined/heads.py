"""The trained part of an expert as a module: what it makes of CLIP's features, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.zero_shot import class_logits
from face_mllm.experts.mask_fer.config import LossSettings
from face_mllm.experts.mask_fer.model import LogitsFrom, MaskFer, losses


class ExpertHead(nn.Module):
    """An expert above its frozen CLIP.

    Args:
        net: the trained part, whose weights the expert's folder holds.

    Attributes:
        source: name of the way its vectors become logits, where there are several.
    """

    source: str = ""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def vectors(self, features: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """What the token is made of, [N, D].

        Args:
            features: CLIP's embeddings [N, C], not normalised.
            seen: what else the expert reads of each face, if it does.
        """
        raise NotImplementedError

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Class logits [N, K]."""
        raise NotImplementedError

    def face_losses(self, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The expert's own loss of each face [N]; targets are class indices."""
        return functional.cross_entropy(self.logits(vectors), targets, reduction="none")


class MaskFerHead(ExpertHead):
    """mask-FER's mask and classifier; the vector is the masked features x.

    Args:
        net: the model.
        source: which logits answer.
        weights: of the terms of its loss.
    """

    net: MaskFer

    def __init__(self, net: MaskFer, source: LogitsFrom, weights: LossSettings) -> None:
        super().__init__(net)
        self.source: LogitsFrom = source
        self.weights = weights

    def train(self, mode: bool = True) -> MaskFerHead:
        """Set training mode; BatchNorm keeps its statistics, a stage's batches are too small."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def vectors(self, features: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Masked features."""
        return self.net.masked(features, seen)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits of the classifier, or as the expert was trained to answer."""
        return self.net.logits(vectors, self.source)

    def face_losses(self, vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Classification, separation and diversity of each face; no channel is dropped."""
        singles = zip(vectors.split(1), targets.split(1), strict=True)
        return torch.stack([losses(self.net, *one, None, self.weights).total for one in singles])


class ExpClipJoinedHead(ExpertHead):
    """Exp-CLIP's projection; its logits compare a face with prompts of each class.

    Args:
        net: the linear head.
        texts: CLIP's features of each class's wordings, [prompts, C] a class.
        scale: CLIP's inverse temperature.
    """

    net: ExpClipHead

    def __init__(self, net: ExpClipHead, texts: Sequence[torch.Tensor], scale: float) -> None:
        super().__init__(net)
        self.sizes = [len(text) for text in texts]
        self.register_buffer("texts", torch.cat(list(texts)).clone(), persistent=False)
        self.scale = scale

    def vectors(self, features: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Projected embeddings."""
        return self.net(features)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Zero-shot logits in the teacher's space, mean of a class's prompts."""
        texts = self.net(self.texts).split(self.sizes)
        return class_logits(vectors, texts, self.scale)
