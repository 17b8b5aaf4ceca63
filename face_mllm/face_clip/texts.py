"""Texts a training step pairs with its pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data_pipeline.captions import FRONTAL_DEGREES, caption
from data_pipeline.labels.action_units import is_active
from data_pipeline.labels.expressions import EXPRESSIONS

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


def contrary_pair(
    labels: dict[str, Any], rng: random.Random, held_out: Sequence[str]
) -> tuple[str, str]:
    """Draw a text and one that contradicts it on the same topic; the second may be empty.

    A third are short captions, which nothing contradicts; the rest have one topic, half of them
    an attribute.
    """
    families = [key for key in CONTRARY_SHARES if labels.get(key) not in (None, {})]
    if not families or rng.random() < 1 / 3:
        return caption(labels, rng, held_out, short=True), ""
    (key,) = rng.choices(families, [CONTRARY_SHARES[key] for key in families])
    if isinstance(labels[key], dict):
        name = rng.choice([n for n in labels[key] if n not in held_out] or list(labels[key]))
        topic = {key: {name: labels[key][name]}}
        value = _CONTRARY_ENTRY[key](labels[key][name])
        contrary = {} if value is None else {key: {name: value}}
    else:
        topic = {key: labels[key]}
        contrary = {key: _CONTRARY_VALUE[key](labels[key], rng)}
    text = _clause(caption(topic, rng, held_out), rng)
    wrong = _clause(caption(contrary, rng, held_out), rng) if contrary else ""
    return text, "" if _says_nothing(wrong) or wrong == text else wrong


def _clause(text: str, rng: random.Random) -> str:
    """Return the text, or in half the cases what follows its subject."""
    _, comma, clause = text.partition(", ")
    return clause if comma and rng.random() < 0.5 else text


def _says_nothing(text: str) -> bool:
    return text in ("", "a face", "a person", "a photo of a face")


CONTRARY_SHARES = {
    "attributes": 0.5,
    "action_units": 0.2,
    "expression": 0.1,
    "head_pose": 0.1,
    "age": 0.1,
}
_CONTRARY_ENTRY: dict[str, Callable[[Any], Any]] = {
    "attributes": lambda value: not value,
    # between absent and active nothing was said, so nothing contradicts it
    "action_units": lambda v: 0.0 if is_active(v) else (4.0 if float(v) < 0.5 else None),
    "head_pose": lambda degrees: -degrees if abs(degrees) >= FRONTAL_DEGREES else 25.0,
}
_CONTRARY_VALUE: dict[str, Callable[[Any, random.Random], Any]] = {
    "expression": lambda word, rng: rng.choice([name for name in EXPRESSIONS if name != word]),
    "age": lambda years, rng: years + 25 if years < 40 else years - 25,
}


def equal_texts(texts: Sequence[str]) -> torch.Tensor:
    """Return [batch, batch] bool: which texts of the batch are word for word the same."""
    first: dict[str, int] = {}
    groups = torch.tensor([first.setdefault(text, len(first)) for text in texts])
    return groups[:, None] == groups[None]
