"""Captions written from exact labels: what CLIP trains on and what stage 1 aligns with.

A caption is a short list of noun phrases in random choice, order and wording. Every phrase says
something the labels know; an absent key is unknown and is never spoken of. Attributes held out
for zero-shot tests leave no trace: no phrase that holds one of their words is written, whatever
label it comes from (the FACS name of AU43, "eye closure", gives `eyes_closed` away).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

from data_pipeline.labels.action_units import (
    ACTIVE_THRESHOLD,
    AULabel,
    is_active,
    parse_action_unit,
)
from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.expressions import ADJECTIVES
from data_pipeline.labels.leaks import canonical_held_out, mentions

GRADES = ("", "trace of", "slight", "marked", "strong", "extreme")  # FACS grades A to E in words
FRONTAL_DEGREES = 8.0  # within this the head counts as facing the camera
GENERAL = ("a face", "a person", "a photo of a face")  # all that can be said of anybody
DRAFTS = 8  # a caption that says nothing by chance is drawn again, at most so often
SHORT_WORDS = 24  # with SmolLM2's tokenizer this stays within 30 tokens

_GENDER_NOUNS = {"male": ("a man", "a male face"), "female": ("a woman", "a female face")}


def caption(
    labels: dict[str, Any],
    rng: random.Random,
    held_out: Iterable[str] = (),
    *,
    short: bool = False,
    threshold: float = ACTIVE_THRESHOLD,
) -> str:
    """Write one caption.

    Args:
        labels: canonical labels of a face record; intensities 0-5, degrees, years.
        rng: source of every random choice; the same state gives the same caption.
        held_out: attribute names that must leave no word in the caption.
        short: at most about 30 LLM tokens (stage-1 alignment) instead of about 40 to 60.
        threshold: smallest AU intensity that counts as active.

    Returns:
        One line of text such as ``"a woman, AU12 lip corner puller, turned left"``.
    """
    banned = canonical_held_out(held_out)
    subject = _pick(_subjects(labels), banned, rng) or "a face"
    clauses = [
        clause
        for wordings in _chosen_topics(labels, rng, short, threshold)
        if (clause := _pick(wordings, banned, rng))
    ]
    rng.shuffle(clauses)
    if short:
        clauses = _fitting(clauses, SHORT_WORDS - _length(subject))
    return ", ".join([subject, *clauses])


def telling_caption(
    labels: dict[str, Any],
    rng: random.Random,
    held_out: Iterable[str] = (),
    *,
    short: bool = False,
    threshold: float = ACTIVE_THRESHOLD,
) -> str:
    """Write a caption that says something of this face, or an empty one where no label does.

    The arguments are those of :func:`caption`.
    """
    drafts = (
        caption(labels, rng, held_out, short=short, threshold=threshold) for _ in range(DRAFTS)
    )
    return next((draft for draft in drafts if draft not in GENERAL), "")


def statements(key: str, name: str, value: Any, held_out: Iterable[str] = ()) -> list[str]:
    """Return every wording of one fact: what a caption may say of it.

    Args:
        key: ``attributes``, ``action_units`` or ``expression``.
        name: the attribute or AU; for ``expression`` the expression, and ``value`` is not read.
        value: true or false; for an AU active or absent.
    """
    if key == "expression":
        wordings = _expression({"expression": name})
    elif key == "action_units":
        wordings = _active_unit(name, True) if value else _quiet_unit(name)
    elif name == "male":
        wordings = list(_GENDER_NOUNS["male" if value else "female"])
    else:
        present, missing = _attribute_topics({name: bool(value)}, short=False)
        wordings = (present or missing)[0]
    banned = canonical_held_out(held_out)
    return [text for text in wordings if mentions(text, banned) is None]


def _pick(wordings: Sequence[str], held_out: tuple[str, ...], rng: random.Random) -> str:
    """Return one allowed wording, or an empty string when every wording gives something away."""
    allowed = [text for text in wordings if mentions(text, held_out) is None]
    return rng.choice(allowed) if allowed else ""


def _length(text: str) -> int:
    """Count words, and every digit as one (SmolLM2 splits numbers into digits)."""
    return len(re.findall(r"[A-Za-z]+|\d", text)) + text.count("AU") + 1


def _fitting(clauses: list[str], room: int) -> list[str]:
    kept: list[str] = []
    for clause in clauses:
        if _length(clause) <= room:
            kept.append(clause)
            room -= _length(clause)
    return kept


def _subjects(labels: dict[str, Any]) -> list[str]:
    gender = labels.get("gender")
    male = labels.get("attributes", {}).get("male")
    if gender is None and male is not None:
        gender = "male" if male else "female"
    if gender not in _GENDER_NOUNS:
        return list(GENERAL)
    nouns = _GENDER_NOUNS[gender]
    return [*nouns, *nouns, f"a photo of {nouns[0]}", *GENERAL[:1]]


def _chosen_topics(
    labels: dict[str, Any], rng: random.Random, short: bool, threshold: float
) -> list[list[str]]:
    """Draw what to speak of; each topic is the list of its wordings."""
    active, quiet = _action_unit_topics(labels.get("action_units", {}), threshold)
    present, missing = _attribute_topics(labels.get("attributes", {}), short)
    person = [topic for topic in (_expression(labels), _age(labels)) if topic]
    pose = _pose_topics(labels.get("head_pose"))
    if short:
        few = [*_some(active, 2, rng), *_some(person + pose, 2, rng), *_some(present, 2, rng)]
        return few + _some(missing, 1, rng)
    return [
        *_some(active, 5, rng),
        *_some(quiet, rng.choice((0, 0, 1)), rng),
        *_some(present, 4, rng),
        *_some(missing, rng.choice((0, 1, 1, 2)), rng),
        *(topic for topic in person if rng.random() < 0.75),
        *(topic for topic in pose if rng.random() < 0.6),
    ]


def _some(topics: list[list[str]], most: int, rng: random.Random) -> list[list[str]]:
    return rng.sample(topics, min(most, len(topics)))


def _expression(labels: dict[str, Any]) -> list[str]:
    noun = labels.get("expression")
    if noun is None:
        return []
    adjective = ADJECTIVES[noun]
    article = "an" if adjective[0] in "aeiou" else "a"
    return [
        f"{article} {adjective} expression",
        f"an expression of {noun}" if noun != "neutral" else "no expression",
        f"looking {adjective}",
        noun if noun != "neutral" else "a neutral face",
    ]


def _age(labels: dict[str, Any]) -> list[str]:
    if "age" in labels:
        age = round(float(labels["age"]))
        return [f"{age} years old", f"aged {age}", f"about {age} years old", f"age {age}"]
    if "age_band" in labels:
        return [f"aged {labels['age_band']}", f"age {labels['age_band']}"]
    return []


def _action_unit_topics(
    units: dict[str, AULabel], threshold: float
) -> tuple[list[list[str]], list[list[str]]]:
    active = [
        _active_unit(key, value) for key, value in units.items() if is_active(value, threshold)
    ]
    quiet = [_quiet_unit(key) for key, value in units.items() if float(value) < 0.5]
    return active or ([["no active action units"]] if units else []), quiet


def _active_unit(key: str, value: AULabel) -> list[str]:
    unit = parse_action_unit(key)
    named = [f"{unit.label} {unit.name}", f"{unit.label} {unit.short}"]
    if not isinstance(value, bool):
        grade = GRADES[min(5, max(1, round(float(value))))]
        named += [f"{grade} {text}" for text in named]
    # the bare number remains where a held-out attribute bans the words
    return [*named, unit.label]


def _quiet_unit(key: str) -> list[str]:
    unit = parse_action_unit(key)
    return [f"no {unit.label} {unit.name}", f"no {unit.label}"]


def _attribute_topics(
    values: dict[str, bool], short: bool
) -> tuple[list[list[str]], list[list[str]]]:
    present, missing = [], []
    for name, value in values.items():
        if name == "male":
            continue  # the subject says it
        entry = attribute(name)
        plain = entry.bare
        if value:
            present.append([entry.phrase, plain, *([] if short else [entry.present])])
        else:
            absent = [f"no {plain}", f"without {entry.phrase}"]
            missing.append([*absent, *([] if short else [entry.absent])])
    return present, missing


def _pose_topics(pose: dict[str, float] | None) -> list[list[str]]:
    """Directions as seen in the image: yaw > 0 left, pitch > 0 up, roll > 0 clockwise."""
    if not pose:
        return []
    sides = (
        ("yaw", "head turned left", "head turned right"),
        ("pitch", "head up", "head down"),
        ("roll", "head tilted clockwise", "head tilted counterclockwise"),
    )
    topics = [
        [text, text, f"{axis} {5 * round(pose[axis] / 5)}"]
        for axis, positive, negative in sides
        if axis in pose and abs(pose[axis]) >= FRONTAL_DEGREES
        for text in [positive if pose[axis] > 0 else negative]
    ]
    return topics or [["facing the camera", "frontal view"]]
