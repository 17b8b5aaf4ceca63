"""The attribute registry: one canonical name per attribute and the words to speak of it.

The rows live in ``attributes.yaml``; a name outside it still works with a plain phrase.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Attribute:
    """One attribute and its wording.

    Args:
        name: canonical snake_case name.
        phrase: noun phrase for "Do you see ...?" and "a face with ...".
        question: canonical yes/no question.
        short: the answer that names it; its first word tells it from the others.
        synonyms: other words for it.
        antonyms: words that deny it, and so give it away.
        group: exclusive family (``hair_color``), or empty.
        value: its word inside the family (``black``).
        present: zero-shot prompt of a face that has it.
        absent: zero-shot prompt of a face that has it not.
    """

    name: str
    phrase: str
    question: str
    short: str = ""
    synonyms: tuple[str, ...] = ()
    antonyms: tuple[str, ...] = ()
    group: str = ""
    value: str = ""
    present: str = ""
    absent: str = ""

    @cached_property
    def bare(self) -> str:
        """The phrase without its article."""
        return re.sub(r"^(an?|the) ", "", self.phrase)

    @property
    def terms(self) -> tuple[str, ...]:
        """Every word or phrase that mentions the attribute, for the leak test."""
        plain = self.name.replace("_", " ")
        return tuple(dict.fromkeys([plain, self.bare, self.short, *self.synonyms, *self.antonyms]))


@cache
def snake_case(text: str) -> str:
    """Return ``text`` as a canonical name: lower case, words joined by one underscore."""
    return re.sub(r"[^a-z0-9]+", "_", text.strip().lower()).strip("_")


@cache
def _rows() -> dict[str, dict[str, object]]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@cache
def attributes() -> Mapping[str, Attribute]:
    """Return every registered attribute by canonical name."""
    return {name: _attribute(name, row) for name, row in _rows().items()}


def _attribute(name: str, row: Mapping[str, object]) -> Attribute:
    words = {key: value for key, value in row.items() if key not in ("aliases", "negates")}
    for key in ("synonyms", "antonyms"):
        words[key] = tuple(words.get(key, ()))  # type: ignore[arg-type]
    words.setdefault("short", re.sub(r"^(an?|the) ", "", str(row["phrase"])))
    words.setdefault("present", f"a face with {row['phrase']}")
    words.setdefault("absent", f"a face without {row['phrase']}")
    return Attribute(name, **words)  # type: ignore[arg-type]


@cache
def attribute(name: str) -> Attribute:
    """Return the registry row of a canonical name, or a generic one for a name it lacks."""
    known = attributes().get(name)
    if known is not None:
        return known
    words = name.replace("_", " ")
    question = f"Does this face show {words}?"
    return _attribute(name, {"phrase": words, "question": question})


@cache
def _spellings() -> dict[str, tuple[str, bool]]:
    table: dict[str, tuple[str, bool]] = {}
    for name, row in _rows().items():
        for raw in (name, *row.get("aliases", ())):  # type: ignore[misc]
            table[snake_case(str(raw))] = (name, False)
        for raw in row.get("negates", ()):  # type: ignore[attr-defined]
            table[snake_case(str(raw))] = (name, True)
    return table


@cache
def canonical_attribute(raw: str) -> tuple[str, bool]:
    """Return (canonical name, negated) of a dataset's spelling.

    ``No_Beard`` gives ``("beard", True)``: its value must be inverted. A spelling the registry
    lacks becomes its own snake_case name.
    """
    return _spellings().get(snake_case(raw), (snake_case(raw), False))


def near_attribute(raw: str) -> str | None:
    """Return the registered spelling that ``raw`` seems to be meant for, None when it is one.

    None also for a name that is like no other: a dataset's own attribute.
    """
    name = snake_case(raw)
    if name in _spellings():
        return None
    near = difflib.get_close_matches(name, _spellings(), n=1, cutoff=0.8)
    return near[0] if near else None


@cache
def groups() -> Mapping[str, tuple[Attribute, ...]]:
    """Return the exclusive families (hair colour, eye colour) with their members."""
    families: dict[str, list[Attribute]] = {}
    for row in attributes().values():
        if row.group:
            families.setdefault(row.group, []).append(row)
    return {name: tuple(rows) for name, rows in families.items()}


CELEBA_ATTRIBUTES: tuple[str, ...] = tuple(
    """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
    Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
    Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
    Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
    Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie
    Young""".split()  # noqa: SIM905
)
"""The 40 names of CelebA's list_attr_celeba.txt in file order (also those of LFWA)."""
