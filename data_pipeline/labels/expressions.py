"""Expression words: eight canonical nouns, three rare ones, and the spellings datasets use.

Numbers never travel between datasets (four different orders of the same seven words are in use);
every reader converts its codes to these words.
"""

from __future__ import annotations

import difflib

from face_mllm.errors import UserError

EXPRESSIONS: tuple[str, ...] = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
"""Canonical order (that of AffectNet)."""

BASIC7: tuple[str, ...] = EXPRESSIONS[:7]
"""Ekman's six and neutral: the classes of RAF-DB, FER2013, SFEW and most protocols."""

OTHER_EXPRESSIONS: tuple[str, ...] = ("anxiety", "helplessness", "disappointment")
"""MAFW's three beyond the eight (Liu et al. 2022): labels, and classes where they are asked for."""

CLASS_SETS: dict[str, tuple[str, ...]] = {"basic7": BASIC7, "canonical8": EXPRESSIONS}
"""Named class sets a question set or a recipe may ask for."""

COMPOUND_EXPRESSIONS: tuple[str, ...] = (
    "happily surprised",
    "happily disgusted",
    "sadly fearful",
    "sadly angry",
    "sadly surprised",
    "sadly disgusted",
    "fearfully angry",
    "fearfully surprised",
    "angrily surprised",
    "angrily disgusted",
    "disgustedly surprised",
)
"""The eleven compound expressions of RAF-DB (Li, Deng and Du 2017), in its order."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "neutral": ("natural", "neutrality", "calm", "no expression", "expressionless"),
    "happiness": ("happy", "joy", "joyful", "happily"),
    "sadness": ("sad", "sadly", "unhappy"),
    "surprise": ("surprised", "astonished", "astonishment", "surprisedly"),
    "fear": ("fearful", "scared", "afraid", "fearfully", "frightened"),
    "disgust": ("disgusted", "disgustedly"),
    "anger": ("angry", "angrily"),
    "contempt": ("contemptuous", "disdain", "contemptuously"),
    "anxiety": ("anxious", "anxiously"),
    "helplessness": ("helpless", "helplessly"),
    "disappointment": ("disappointed", "disappointedly"),
}
"""Other spellings of each canonical word; no word stands in two rows."""

ADJECTIVES: dict[str, str] = {
    "neutral": "neutral",
    "happiness": "happy",
    "sadness": "sad",
    "surprise": "surprised",
    "fear": "fearful",
    "disgust": "disgusted",
    "anger": "angry",
    "contempt": "contemptuous",
    "anxiety": "anxious",
    "helplessness": "helpless",
    "disappointment": "disappointed",
}
"""How a face is called that shows it."""

SPELLINGS: dict[str, str] = {
    word: name for name in (*EXPRESSIONS, *OTHER_EXPRESSIONS) for word in (name, *SYNONYMS[name])
}
"""Every known spelling -> canonical word."""


def find_expression(word: object) -> str | None:
    """Return the canonical expression of ``word`` in any known spelling, or None."""
    return SPELLINGS.get(str(word).strip().lower().replace("_", " "))


def canonical_expression(word: object) -> str:
    """Return the canonical expression of ``word``.

    Raises:
        UserError: when no spelling matches; the message names the nearest known word.
    """
    found = find_expression(word)
    if found is not None:
        return found
    near = difflib.get_close_matches(str(word).lower(), SPELLINGS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"unknown expression {word!r}",
        f"{hint}use one of {', '.join(EXPRESSIONS)} or map it with `values:` in the recipe",
    )
