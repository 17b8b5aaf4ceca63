"""The last phase: the text side learns on, the image tower is locked.

Locked-image tuning (LiT, Zhai et al. 2022): the finished tower's pooled features are computed
once, so a step costs only the text tower. Each picture's text has its own contradiction as a
further negative (NegCLIP, Yuksekgonul et al. 2023): "a face without eyeglasses" beside "a face
with eyeglasses", which batches of many-topic captions hardly teach.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from face_mllm.errors import UserError
from face_mllm.face_clip.augment import draw_moves, move, normalise, spoil
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import Faces
from face_mllm.face_clip.labels import Labels, moved_labels
from face_mllm.face_clip.model import MAX_LOGIT_SCALE, FaceClipModel
from face_mllm.face_clip.texts import contrary_pair, equal_texts
from face_mllm.hardware import Hardware
from face_mllm.progress import Progress

BATCH = 128
VIEWS = 1  # moved and spoilt pictures of each face


def tune_text(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Faces,
    config: FaceClipConfig,
    hardware: Hardware,
    progress: Progress,
) -> None:
    """Train text tower, projections and temperature in place; the image tower stays as it is."""
    device = torch.device(hardware.device)
    model.to(device)
    features, labels = moved_features(model, train, config, hardware, progress)
    parts = (model.text_model, model.text_projection, model.visual_projection)
    trained = [*(p for part in parts for p in part.parameters()), model.logit_scale]
    optimizer = torch.optim.AdamW(trained, lr=config.locked.learning_rate, weight_decay=0.0)
    size, steps = min(config.locked.batch_size, len(labels)), config.locked.steps
    for step in range(steps):
        rng = random.Random(f"{config.seed}/locked/{step}")
        rows = rng.sample(range(len(labels)), size)
        pairs = [contrary_pair(labels[row], rng, config.holdout_attributes) for row in rows]
        with torch.autocast(device.type, torch.bfloat16, enabled=hardware.autocast):
            loss = _loss(model, tokenizer, features[rows].to(device), pairs)
        if not torch.isfinite(loss):
            raise UserError(
                f"loss became {loss.item()} in locked step {step}", "lower locked.learning_rate"
            )
        rate = config.locked.learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        progress(step + 1, steps, f"tuning the text tower, loss {loss.item():.3f}")
    model.cpu().eval()


@torch.inference_mode()
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
    rows = torch.arange(len(train)).repeat(VIEWS)
    for part in rows.split(BATCH):
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
        progress(len(labels), len(rows), "features of the locked tower")
    return torch.cat(features).clone(), labels


def _loss(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    pooled: torch.Tensor,
    pairs: Sequence[tuple[str, str]],
) -> torch.Tensor:
    """InfoNCE with one more negative a picture: what contradicts its own text."""
    texts = [text for text, _ in pairs]
    wrong = [contrary or text for text, contrary in pairs]
    tokens = tokenizer([*texts, *wrong], padding=True, truncation=True, return_tensors="pt")
    embedded = model.get_text_features(**tokens.to(pooled.device)).pooler_output
    absent = torch.tensor([not contrary for _, contrary in pairs], device=pooled.device)
    image = model.visual_projection(pooled)
    text, negative = embedded.chunk(2)
    same = equal_texts(texts).to(pooled.device)
    return contrary_loss(image, text, negative, absent, model.logit_scale, same)


def contrary_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    absent: torch.Tensor,
    logit_scale: torch.Tensor,
    same: torch.Tensor,
) -> torch.Tensor:
    """Symmetric InfoNCE where row i of the pictures also meets ``negative[i]``, and only that.

    Args:
        image, text, negative: [batch, D], any length.
        absent: [batch] bool, rows that have no contradiction.
        logit_scale: log of the inverse temperature.
        same: [batch, batch] bool, equal texts share the target.
    """
    image, text, negative = (
        functional.normalize(part.float(), dim=-1) for part in (image, text, negative)
    )
    scale = logit_scale.exp()
    logits = scale * image @ text.T
    own = (scale * (image * negative).sum(-1)).masked_fill(absent, -1e4)
    wanted = same.float() / same.sum(1, keepdim=True)
    columns = functional.cross_entropy(logits.T, wanted)
    wider = torch.cat([logits, own[:, None]], 1)
    rows = functional.cross_entropy(wider, functional.pad(wanted, (0, 1)))
    return 0.5 * (rows + columns)
