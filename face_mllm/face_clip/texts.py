"""Texts a training step pairs with its pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from data_pipeline.captions import caption

LONG, SHORT = 0.55, 0.8  # shares: long captions, short ones up to here, then one-topic prompts


def training_text(labels: dict[str, Any], rng: random.Random, held_out: Sequence[str]) -> str:
    """Draw a long caption, a short one, or a one-topic text of the kind zero-shot prompts are."""
    draw = rng.random()
    if draw < SHORT:
        return caption(labels, rng, held_out, short=draw >= LONG)
    return _clause(caption(_one_topic(labels, rng), rng, held_out), rng)


def _one_topic(labels: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Keep one expression, attribute, AU, pose axis or age."""
    topics: list[dict[str, Any]] = [
        {key: labels[key]} for key in ("expression", "age") if key in labels
    ]
    for key in ("attributes", "action_units", "head_pose"):
        if labels.get(key):
            name = rng.choice(list(labels[key]))
            topics.append({key: {name: labels[key][name]}})
    return rng.choice(topics) if topics else {}


def _clause(text: str, rng: random.Random) -> str:
    """Return the text, or in half the cases what follows its subject."""
    _, comma, clause = text.partition(", ")
    return clause if comma and rng.random() < 0.5 else text


def equal_texts(texts: Sequence[str]) -> torch.Tensor:
    """Return [batch, batch] bool: which texts of the batch are word for word the same."""
    first: dict[str, int] = {}
    groups = torch.tensor([first.setdefault(text, len(first)) for text in texts])
    return groups[:, None] == groups[None]
