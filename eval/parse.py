"""Read a generated answer: whole words only, negated clauses dropped, no default class.

The traps avoided are those of published parsers: "no" found inside "nose", an answer without any
class name counted as the first class, negated mentions counted as hits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from eval.tasks import is_binary

_NEGATION = re.compile(r"\b(?:no|not|never|without|neither|nor|isn't|aren't|doesn't)\b")
_CLAUSE = re.compile(r"[.;!?\n]|,\s|\bbut\b")
_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d+(?:\.\d+)?")


def parse_answer(
    text: str,
    choices: Sequence[str],
    values: Sequence[float] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> float | None:
    """The choice (its index) or the number an answer names; None when it cannot be read.

    Args:
        text: what the model said.
        choices: the closed answer set.
        values: what the choices stand for; given, the answer is read as a number,
            in their range give or take half of it, or as a choice where words carry the number
            or its sign ("right 30" for -30, "trace" for 1).
        synonyms: choice -> further words for it.
    """
    folded = text.casefold().replace("\u2019", "'")
    if values:
        return _value(folded, choices, values)
    if is_binary(choices):
        return _binary(folded, choices[0].casefold())
    return _choice(folded, choices, synonyms or {})


def _binary(text: str, positive: str) -> float | None:
    """The first of yes, the thing's own name, or a negation, as a whole word."""
    found = re.search(rf"(?P<yes>\b(?:yes|{re.escape(positive)})\b)|{_NEGATION.pattern}", text)
    return None if found is None else float(found["yes"] is None)


def _value(text: str, choices: Sequence[str], values: Sequence[float]) -> float | None:
    low, high = min(values), max(values)
    plain = all(_number(c, low, high) == v for c, v in zip(choices, values, strict=True))
    if plain or _NUMBER.fullmatch(text.strip(" .")):
        return _number(text, low, high)
    at = _choice(text, choices, {})
    return None if at is None else values[int(at)]


def _number(text: str, low: float, high: float) -> float | None:
    slack = 0.5 * (high - low)
    for found in _NUMBER.finditer(text):
        number = float(found.group().replace("\u2212", "-"))
        if low - slack <= number <= high + slack:
            return number
    return None


def _choice(
    text: str, choices: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> float | None:
    clauses = [part for part in _CLAUSE.split(text) if not _NEGATION.search(part)]
    for clause in clauses:
        hits = {
            at
            for at, choice in enumerate(choices)
            for word in (choice, *synonyms.get(choice, ()))
            if re.search(rf"\b{re.escape(word.casefold())}\b", clause)
        }
        if len(hits) == 1:
            return float(hits.pop())
    return None
