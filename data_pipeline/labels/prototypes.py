"""Expressions as compositions of action units, and back: which expression do active units make?

Prototypes after EMFACS (Friesen & Ekman 1983) and the unit frequencies Du, Tao & Martinez (2014,
PNAS 111, table 1) report for posed basic emotions; contempt after Matsumoto & Ekman (2004).
"""

from __future__ import annotations

from collections.abc import Mapping

# expression -> unit -> probability that the unit takes part
PROTOTYPES: Mapping[str, Mapping[str, float]] = {
    "neutral": {},
    "happiness": {"AU12": 1.0, "AU6": 0.85, "AU25": 0.5},
    "sadness": {"AU1": 0.95, "AU4": 0.75, "AU15": 0.95, "AU17": 0.5},
    "surprise": {"AU1": 0.97, "AU2": 0.97, "AU5": 0.8, "AU26": 0.93},
    "fear": {"AU1": 0.95, "AU4": 0.85, "AU20": 0.92, "AU5": 0.75, "AU2": 0.45, "AU25": 0.5},
    "disgust": {"AU9": 0.95, "AU10": 0.85, "AU4": 0.3, "AU17": 0.4},
    "anger": {"AU4": 1.0, "AU7": 0.85, "AU24": 0.85, "AU5": 0.15, "AU17": 0.25},
    "contempt": {"AU14": 0.95, "AU12": 0.6},
}

CORE = 0.7
"""Units at least this likely belong to the core of an expression."""


def core_units(expression: str) -> frozenset[str]:
    """Return the units that nearly always take part in an expression."""
    return frozenset(unit for unit, p in PROTOTYPES[expression].items() if p >= CORE)


def typical_expression(active: Mapping[str, bool]) -> str | None:
    """Return the one expression whose core the active units make up, None when none or several.

    A core counts as made up when more than half of its units are labelled, at least two of them
    (or the only one), and all of those are active. Of two such cores the larger wins if it holds
    the smaller; otherwise the units are ambiguous.

    Args:
        active: unit -> whether it is active; a unit that is not labelled is absent here.
    """
    seen: dict[str, frozenset[str]] = {}
    for name in PROTOTYPES:
        core = core_units(name)
        known = core & active.keys()
        enough = 2 * len(known) > len(core) and len(known) >= min(2, len(core))
        if enough and all(active[unit] for unit in known):
            seen[name] = known
    best = [name for name, units in seen.items() if all(units >= other for other in seen.values())]
    return best[0] if len(best) == 1 else None
