"""Does a text mention a held-out attribute? Whole words, synonyms and negations included.

Substring tests fire on "nose" for "no" and miss "blonde" for "blond" alike; this one matches
words with their plural, lets filler words stand inside a phrase ("the mouth is slightly open")
and ignores case, hyphens and underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.labels.attributes import attribute, canonical_attribute, near_attribute
from data_pipeline.labels.validate import LABEL_KEYS

_IS = r"(?:is|are|was|were|be|being|looks?)"
_HOW = r"(?:slightly|widely|wide|partly|half|fully|very|a|bit|quite|rather|all)"
_FILLER = rf"(?:(?:{_IS}|{_HOW})\s+)"
_BESIDE = (  # what else is said of hair, eyes or skin in the same breath: "straight black hair"
    r"(?:long|short|thick|thin|straight|wavy|curly|dark|light|big|small|large|round|soft|shiny"
    r"|black|brown|blonde?|gr[ae]y|red|white|blue|green|pale|full|narrow|pointy|oval|open)"
)
_SEX = frozenset({"gender", "sex"})  # the attribute is called male


@dataclass(frozen=True)
class Leak:
    """One mention: the held-out attribute, the words found, and the text they stand in."""

    attribute: str
    term: str
    text: str


def canonical_held_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return the canonical names of held-out attributes, in order, each once; gender is male."""
    return tuple(dict.fromkeys(map(_canonical, names)))


def _canonical(name: str) -> str:
    return "male" if name.strip().lower() in _SEX else canonical_attribute(name)[0]


def checked_held_out(names: Iterable[str]) -> tuple[str, ...]:
    """Return :func:`canonical_held_out`; a name that would hold nothing out is refused.

    Raises:
        ValueError: a misspelt attribute, or a label that is none.
    """
    for name in names:
        if name.strip().lower() in LABEL_KEYS - _SEX:
            raise ValueError(f"{name!r} is no attribute: leave it out of `tasks` instead")
        if near := near_attribute(name):
            raise ValueError(f"no attribute {name!r}: did you mean {near!r}?")
    return canonical_held_out(names)


def _pattern(term: str, turned: bool = False) -> str:
    """Return what finds a term; ``turned`` when its two words stand the other way round."""
    words = [re.escape(word) for word in re.split(r"[\s_-]+", term.lower()) if word]
    gap = rf"\s+{_FILLER}{{0,2}}"
    if len(words) == 2:
        words = words[::-1] if turned else words
        start = rf"\s+{_IS}\s+" if turned else r",?\s+"
        gap = rf"(?:{gap}|{start}(?:and\s+)?(?:{_BESIDE},?\s+(?:and\s+)?){{1,3}})"
    return rf"\b{gap.join(words)}(?:e?s)?\b"


@lru_cache(maxsize=256)
def _matcher(name: str) -> re.Pattern[str]:
    """Two words are looked for in both orders: "black hair", "the hair is black"."""
    terms = sorted(attribute(name).terms, key=_longest_first)
    pairs = [term for term in terms if len(term.split()) == 2]
    return re.compile("|".join([*map(_pattern, terms), *(_pattern(term, True) for term in pairs)]))


def _longest_first(term: str) -> tuple[int, str]:
    return -len(term), term


@lru_cache(maxsize=65536)
def mentions(text: str, held_out: tuple[str, ...]) -> tuple[str, str] | None:
    """Return (attribute, words) of the first mention of a held-out attribute, or None."""
    plain = re.sub(r"[_\s'\u2019-]+", " ", text.lower())
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
