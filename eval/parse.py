"""Read a generated answer: whole words only, negated clauses dropped, no default class.

The traps avoided are those of published parsers: "no" found inside "nose", an answer without any
class name counted as the first class, negated mentions counted as hits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
            in their range give or take half of it.
        synonyms: choice -> further words for it.
    """
    folded = text.casefold().replace("\u2019", "'")
    if values:
        return _number(folded, min(values), max(values))
    if set(choices) == {"yes", "no"}:
        found = re.search(r"\b(yes|no)\b", folded)
        return float(list(choices).index(found.group(1))) if found else None
    return _choice(folded, choices, synonyms or {})


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
