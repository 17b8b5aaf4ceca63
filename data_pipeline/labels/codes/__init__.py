"""Label codes as data: ``NAME.yaml`` maps a dataset's own codes to canonical words.

A file maps field (``expression``, ``gender``, ``race``, ...) to ``{code: word}``; null marks a code
that means unknown (EmotioNet 999, BP4D 9), so it can never be read as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent

Code = int | str


@cache
def codes(source: str, field: str) -> Mapping[Code, str | bool | None]:
    """Return code -> canonical word of one field of a source.

    Args:
        source: file name without ``.yaml``.
        field: a key of the file.
    """
    raw = yaml.safe_load((FOLDER / f"{source}.yaml").read_text(encoding="utf-8"))
    return raw[field]
