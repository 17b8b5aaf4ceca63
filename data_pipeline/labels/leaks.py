"""Does a text mention a held-out attribute? Whole words, synonyms and negations included.

Substring tests fire on "nose" for "no" and miss "blonde" for "blond" alike; this one matches
words with their plural, lets filler words stand inside a phrase ("the mouth is slightly open")
and ignores case, hyphens and underscores.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.labels.attributes import attribute, attributes, canonical_attribute
from face_mllm.errors import UserError

_FILLER = r"(?:(?:is|are|was|were|be|being|slightly|widely|wide|partly|half|fully|very|a|bit)\s+)"


@dataclass(frozen=True)
class Leak:
    """One mention: the held-out attribute, the words found, and the text they stand in."""

    attribute: str
    term: str
    text: str


def canonical_held_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return the canonical names of held-out attributes, in order, each once.

    Raises:
        UserError: a name that looks like a misspelt one, which would hold nothing out.
    """
    found = tuple(dict.fromkeys(canonical_attribute(name)[0] for name in names))
    for name in found:
        near = difflib.get_close_matches(name, attributes(), n=1, cutoff=0.85)
        if near and near[0] != name:
            raise UserError(f"held-out attribute {name!r}", f"did you mean {near[0]!r}?")
    return found


def _pattern(term: str) -> str:
    words = [re.escape(word) for word in re.split(r"[\s_-]+", term.lower()) if word]
    body = (r"\s+" + _FILLER + "{0,2}").join(words)
    return rf"\b{body}(?:e?s)?\b"


@lru_cache(maxsize=256)
def _matcher(name: str) -> re.Pattern[str]:
    terms = {order for term in attribute(name).terms for order in _orders(term)}
    return re.compile("|".join(_pattern(term) for term in sorted(terms, key=_longest_first)))


def _orders(term: str) -> tuple[str, ...]:
    """Two words are looked for in both orders: "black hair", "the hair is black"."""
    words = term.split()
    return (term, f"{words[1]} {words[0]}") if len(words) == 2 else (term,)


def _longest_first(term: str) -> tuple[int, str]:
    return -len(term), term


@lru_cache(maxsize=65536)
def mentions(text: str, held_out: tuple[str, ...]) -> tuple[str, str] | None:
    """Return (attribute, words) of the first mention of a held-out attribute, or None."""
    plain = re.sub(r"[_\s-]+", " ", text.lower())
    for name in held_out:
        found = _matcher(name).search(plain)
        if found:
            return name, found.group(0)
    return None


def find_leaks(texts: Iterable[str], held_out: Iterable[str]) -> list[Leak]:
    """Return every text that mentions a held-out attribute.

    Args:
        texts: questions, answers, choices, captions.
        held_out: attribute names in any registered spelling.
    """
    names = canonical_held_out(held_out)
    found = ((text, mentions(text, names)) for text in texts)
    return [Leak(hit[0], hit[1], text) for text, hit in found if hit]
