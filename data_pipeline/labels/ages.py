"""Age bands: the words datasets use, one canonical spelling, and the middle of each band."""

from __future__ import annotations

import calendar
import re

from face_mllm.errors import UserError

FAIRFACE_BANDS: tuple[str, ...] = (
    "0-2",
    "3-9",
    "10-19",
    "20-29",
    "30-39",
    "40-49",
    "50-59",
    "60-69",
    "70+",
)
"""FairFace's nine bands; its csv writes the last one as "more than 70"."""

OLDEST = 90.0
"""Where an open band is taken to end (70+ has its middle at 80)."""

_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_RANGE = re.compile(r"^(\d{1,3})\s*(?:-|\u2013|to)\s*(\d{1,3})$")
_OPEN = re.compile(r"^(?:more than|over|>=?)?\s*(\d{1,3})\s*(\+?)$")
_DATE = re.compile(r"^(\d{1,2})-([a-z]{3})$")


def canonical_band(text: object) -> str:
    """Return a band as ``20-29`` or ``70+``.

    Understands "more than 70" and the dates a spreadsheet makes of ``3-9`` (``9-Mar``).

    Raises:
        UserError: when the text is no band.
    """
    word = str(text).strip().lower()
    dated = _DATE.match(word)
    if dated and dated.group(2) in _MONTHS:
        return f"{_MONTHS[dated.group(2)]}-{int(dated.group(1))}"
    span = _RANGE.match(word)
    if span and int(span.group(1)) < int(span.group(2)):
        return f"{int(span.group(1))}-{int(span.group(2))}"
    top = _OPEN.match(word)
    if top and not word.isdigit():
        return f"{int(top.group(1))}+"
    raise UserError(f"{text!r} is not an age band", "write it as 20-29 or 70+")


def band_limits(band: str) -> tuple[float, float]:
    """Return (first age, first age of the next band) in years."""
    band = canonical_band(band)
    if band.endswith("+"):
        start = float(band[:-1])
        return start, max(OLDEST, start + 10)
    low, high = band.split("-")
    return float(low), float(high) + 1


def band_midpoint(band: str) -> float:
    """Return the middle of a band in years (``20-29`` -> 25.0, ``70+`` -> 80.0)."""
    low, high = band_limits(band)
    return (low + high) / 2


def band_of(age: float, bands: tuple[str, ...] = FAIRFACE_BANDS) -> str | None:
    """Return the band an age in years falls into, or None when no band holds it."""
    for band in bands:
        low, high = band_limits(band)
        if low <= age < (float("inf") if band.endswith("+") else high):
            return band
    return None
