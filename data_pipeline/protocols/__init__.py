"""Protocols as data: ``NAME.yaml`` says how a dataset is split and how its labels become targets.

Each file maps protocol name to ``about`` (one line), ``published`` (split -> number of faces as the
literature counts them, where known), ``published_expressions`` (the same by expression), ``source``
(paper or public file) and ``settings`` (whatever the reader needs: fold lists, kept classes). Three
settings decide the targets of questions whatever the question set says: ``active_threshold``,
``expression_classes`` and ``soft_labels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent
TARGETS = ("active_threshold", "expression_classes", "soft_labels")


class Protocol(BaseModel):
    """A named way to split a dataset and to turn its raw labels into targets.

    Args:
        name: recorded in the manifest and beside every result (``disfa/3fold-ge2-fold1``).
        about: one line.
        published: split -> faces as published; ``data inspect`` compares with it.
        published_expressions: split -> expression -> faces as published: a copy whose classes are
            numbered otherwise has the right number of faces and the wrong ones of these.
        source: where the protocol or its counts come from.
        settings: what the reader needs to carry it out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    published: Mapping[str, int] = Field(default_factory=dict)
    published_expressions: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)
    source: str = ""
    settings: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def targets(self) -> dict[str, Any]:
        """The settings that turn labels into answers: :data:`TARGETS`, those it fixes."""
        return {key: self.settings[key] for key in TARGETS if key in self.settings}


@cache
def protocols(source: str) -> Mapping[str, Protocol]:
    """Return the protocols of a source in file order; the first is its default."""
    raw = yaml.safe_load((FOLDER / f"{source}.yaml").read_text(encoding="utf-8"))
    return {name: Protocol(name=name, **(row or {})) for name, row in raw.items()}
