"""Lexical warm start of stage 1: image tokens learn to lie near the LLM's own words for a face.

A causal LLM copies what stands in its context, so an image token that lies close to the input
embedding of "beard" is half of an answer already. Before the language-model loss starts, the
projector is fitted alone, on cached tower states and without any pass through the LLM: the token
that begins an answer about a face is to be found, by cosine, in some image token. Only the first
token counts, since it decides the answer and a later one ("hair", "lips") is shared by many. It
costs seconds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.model.vision import image_tokens
from face_mllm.progress import Progress

FACES = 4000  # enough for a bag of some hundred words
BATCH = 64
SHARPNESS = 10.0  # of the soft maximum over image tokens
LEARNING_RATE = 2e-3
NOISE = 0.6  # in standard deviations of the tower's channels, or few faces are learned by heart
FREQUENT, RARE = 0.8, 0.01  # shares of faces; words outside say nothing about a face
CLOSED = frozenset({"yes", "no"})


def deciding_tokens(record: FaceRecord, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """First tokens of the closed answers but yes and no; without any, the free texts' tokens."""
    closed = {qa.answer for qa in record.qa if qa.choices and qa.answer.lower() not in CLOSED}
    free = {qa.answer for qa in record.qa if not qa.choices}
    words = sorted(closed or free)
    if not words:
        return set()
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    return {token for answer in ids for token in (answer[:1] if closed else answer)}


def warm_start(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    records: Iterable[FaceRecord],
    steps: int,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """Fit the projector to the words of the faces; returns the last loss (nats per word).

    Args:
        model: composed model; only its projector changes.
        processor: its processor.
        records: training faces, at most :data:`FACES` of which are used.
        steps: optimiser steps.
        seed: of the batches.
        progress: called with (step, steps, text).
    """
    states, bags = _cached(model, processor, records, progress)
    vocabulary, targets = _targets(bags)
    words = model.get_input_embeddings().weight.detach()[vocabulary].float()
    length = words.norm(dim=1).mean()
    words = functional.normalize(words - words.mean(0), dim=1)
    scale = nn.Parameter(torch.tensor(SHARPNESS))
    bias = nn.Parameter(torch.full((len(vocabulary),), -3.0))
    optimiser = torch.optim.AdamW(
        [
            {"params": model.projector.parameters(), "lr": LEARNING_RATE},
            {"params": [scale, bias], "lr": 5 * LEARNING_RATE},
        ],
        weight_decay=0.0,
    )
    draw = torch.Generator().manual_seed(seed)
    spread = NOISE * states.flatten(0, 1).std(0)
    loss = torch.zeros(())
    for step in range(steps):
        picked = torch.randint(len(states), (BATCH,), generator=draw)
        noise = torch.randn(BATCH, *states.shape[1:], generator=draw) * spread
        tokens = model.projector(states[picked] + noise)
        near = functional.normalize(tokens, dim=-1) @ words.T  # [batch, tokens, words]
        logits = scale * torch.logsumexp(SHARPNESS * near, 1) / SHARPNESS + bias
        loss = functional.binary_cross_entropy_with_logits(logits, targets[picked])
        # as long as words, or the LLM's first norm would drown one in the other
        total = loss + 0.1 * ((tokens.norm(dim=-1) / length - 1) ** 2).mean()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        if progress:
            progress(step + 1, steps, f"lexical warm start, loss {loss.item():.3f}")
    return loss.item()


def _cached(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    records: Iterable[FaceRecord],
    progress: Progress | None,
) -> tuple[torch.Tensor, list[set[int]]]:
    """Tower states [faces, tokens, width] and each face's bag of token ids."""
    config = model.config
    faces = list(itertools.islice(records, FACES))
    states, bags = [], []
    for start in range(0, len(faces), BATCH):
        batch = faces[start : start + BATCH]
        pixels = processor.pixels([record.open_image() for record in batch])
        with torch.no_grad():
            states.append(
                image_tokens(model.vision_tower, pixels, config.vision_layer, config.vision_select)
            )
        for record in batch:
            bags.append(deciding_tokens(record, processor.tokenizer))
        if progress:
            progress(len(bags), len(faces), "lexical warm start, reading faces")
    return torch.cat(states).float(), bags


def _targets(bags: list[set[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vocabulary [V] of telling token ids and the faces' bags over it, float [faces, V]."""
    counts = Counter(token for bag in bags for token in bag)
    telling = sorted(
        token for token, count in counts.items() if RARE <= count / len(bags) <= FREQUENT
    )
    if not telling:
        raise UserError(
            "lexical warm start: the faces' answers hold no telling word",
            "set projector.lexical_steps: 0, or build with captions or named answers",
        )
    targets = torch.tensor([[float(token in bag) for token in telling] for bag in bags])
    return torch.tensor(telling), targets
