"""The last phase: the text side learns on, the image tower is locked.

Locked-image tuning (LiT, Zhai et al. 2022): the finished tower's pooled features are computed
once, so a step costs only the text tower. Besides short captions, every step asks each picture
every question at once: one wording that says a label holds against one that denies it. Batches
of captions about many things hardly teach the difference of "with" and "without".
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from data_pipeline.captions import caption, statements
from data_pipeline.labels.expressions import EXPRESSIONS
from face_mllm.errors import UserError
from face_mllm.face_clip.augment import draw_moves, move, normalise, spoil
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import Faces
from face_mllm.face_clip.labels import NO_EXPRESSION, Labels, LabelSpace, Targets, moved_labels
from face_mllm.face_clip.losses import contrastive_loss
from face_mllm.face_clip.model import MAX_LOGIT_SCALE, FaceClipModel
from face_mllm.face_clip.texts import equal_texts
from face_mllm.hardware import Hardware
from face_mllm.progress import Progress

BATCH = 128
MOST_WEIGHT = 8.0  # of a rare answer
CAPTIONED = 64  # pictures of a step that get a caption too


@dataclass(frozen=True)
class Prompts:
    """Wordings of one step.

    Args:
        texts: denials and claims of each flag by turns, then one wording per expression.
        flags: how many flags (AUs, then attributes).
    """

    texts: list[str]
    flags: int


def draw_prompts(space: LabelSpace, rng: random.Random, held_out: tuple[str, ...]) -> Prompts:
    """Draw a denial and a claim for each AU and attribute, and a wording per expression."""
    facts = [("action_units", name) for name in space.action_units]
    facts += [("attributes", name) for name in space.attributes]
    texts = [
        rng.choice(statements(key, name, value, held_out))
        for key, name in facts
        for value in (False, True)
    ]
    texts += [rng.choice(statements("expression", name, True, held_out)) for name in EXPRESSIONS]
    return Prompts(texts, len(facts))


def prompt_loss(
    logits: torch.Tensor, prompts: Prompts, targets: Targets, weight: torch.Tensor
) -> torch.Tensor:
    """Loss of choosing between claim and denial, and among the expressions.

    Args:
        logits: [pictures, texts] of :attr:`Prompts.texts`.
        targets: labels of the pictures; unknown ones weigh nothing.
        weight: [flags] of a true flag.
    """
    pairs = logits[:, : 2 * prompts.flags].unflatten(1, (-1, 2))
    wanted = torch.cat([targets.active, targets.attributes], 1)
    known = ~wanted.isnan()
    flags = functional.binary_cross_entropy_with_logits(
        pairs[..., 1] - pairs[..., 0],
        torch.where(known, wanted, 0.0),
        pos_weight=weight,
        reduction="none",
    )
    expressions = functional.cross_entropy(
        logits[:, 2 * prompts.flags :],
        targets.expression,
        ignore_index=NO_EXPRESSION,
        reduction="sum",
    )
    told = (targets.expression != NO_EXPRESSION).sum().clamp_min(1)
    return (flags * known).sum() / known.sum().clamp_min(1) + expressions / told


def tune_text(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Faces,
    config: FaceClipConfig,
    hardware: Hardware,
    progress: Progress,
) -> None:
    """Train text tower, projections and temperature in place; the image tower stays as it is."""
    model.to(hardware.device)
    features, labels = moved_features(model, train, config, hardware, progress)
    tuning = _Tuning(model, tokenizer, features, labels, config, hardware)
    steps = config.locked.steps
    for step in range(steps):
        loss = tuning.advance(step)
        progress(step + 1, steps, f"tuning the text tower, loss {loss:.3f}")
    model.cpu().eval()


def text_optimizer(model: FaceClipModel) -> torch.optim.AdamW:
    """For the text tower, both projections and the temperature; the image tower stays."""
    parts = (model.text_model, model.text_projection, model.visual_projection)
    trained = [*(p for part in parts for p in part.parameters()), model.logit_scale]
    return torch.optim.AdamW(trained, weight_decay=0.0)


def falling(step: int, steps: int) -> float:
    """Share of the learning rate, a cosine from 1 to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * step / steps)


def take_step(
    model: FaceClipModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float
) -> None:
    """One optimiser step at a rate; the temperature stays within CLIP's limit."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class _Tuning:
    """Optimiser and data of the phase; arguments as :func:`tune_text`."""

    def __init__(
        self,
        model: FaceClipModel,
        tokenizer: PreTrainedTokenizerFast,
        features: torch.Tensor,
        labels: list[Labels],
        config: FaceClipConfig,
        hardware: Hardware,
    ) -> None:
        self.model, self.tokenizer, self.config, self.hardware = model, tokenizer, config, hardware
        self.features, self.labels = features, labels
        self.space = LabelSpace.of(labels, config.holdout_attributes)
        self.targets = self.space.encode(labels)
        self.weight = _balance(self.targets)
        self.optimizer = text_optimizer(model)

    def advance(self, step: int) -> float:
        """Make one step; returns its loss."""
        settings = self.config.locked
        rng = random.Random(f"{self.config.seed}/locked/{step}")
        rows = rng.sample(range(len(self.labels)), min(settings.batch_size, len(self.labels)))
        loss = self._loss(rows, rng)
        if not torch.isfinite(loss):
            raise UserError(f"loss became {loss} in locked step {step}", "lower learning_rate")
        rate = settings.learning_rate * falling(step, settings.steps)
        take_step(self.model, self.optimizer, loss, rate)
        return loss.item()

    def _loss(self, rows: list[int], rng: random.Random) -> torch.Tensor:
        held_out, device = self.config.holdout_attributes, torch.device(self.hardware.device)
        prompts = draw_prompts(self.space, rng, held_out)
        captions = [caption(self.labels[r], rng, held_out, short=True) for r in rows[:CAPTIONED]]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.hardware.autocast):
            image = self.model.visual_projection(self.features[rows].to(device))
            asked, said = self._embed(prompts.texts, device), self._embed(captions, device)
        unit = functional.normalize(image.float(), dim=-1)
        scale = self.model.logit_scale.exp()
        logits = scale * unit @ functional.normalize(asked.float(), dim=-1).T
        chosen = prompt_loss(logits, prompts, self.targets[rows].to(device), self.weight.to(device))
        same = equal_texts(captions).to(device)
        few = image[: len(captions)]
        return chosen + 0.2 * contrastive_loss(few, said, self.model.logit_scale, same)

    def _embed(self, texts: list[str], device: torch.device) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(device)).pooler_output


def _balance(targets: Targets) -> torch.Tensor:
    """Weight of a true flag that makes both answers count alike, [flags]."""
    flags = torch.cat([targets.active, targets.attributes], 1)
    positive, negative = ((flags == value).sum(0).clamp_min(1) for value in (1, 0))
    return (negative / positive).clamp(1 / MOST_WEIGHT, MOST_WEIGHT)


@torch.no_grad()
def moved_features(
    model: FaceClipModel,
    train: Faces,
    config: FaceClipConfig,
    hardware: Hardware,
    progress: Progress,
) -> tuple[torch.Tensor, list[Labels]]:
    """Pooled features of every training face under random moves, and the moved labels."""
    generator = torch.Generator().manual_seed(config.seed + 1)
    model.eval()
    device = torch.device(hardware.device)
    features, labels = [], []
    for part in torch.arange(len(train)).split(BATCH):
        moves = draw_moves(len(part), config.augment, generator)
        pixels = move(train.images[part], moves, config.image.size)
        pixels = normalise(spoil(pixels, moves, config.augment, generator)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=hardware.autocast):
            features.append(model.vision_model(pixels).pooler_output.float().cpu())
        how = zip(moves.flip, moves.degrees, moves.gray, moves.blurred, strict=True)
        labels += [
            moved_labels(train.labels[row], *(value.item() for value in values))
            for row, values in zip(part.tolist(), how, strict=True)
        ]
        progress(len(labels), len(train), "features of the locked tower")
    return torch.cat(features), labels
