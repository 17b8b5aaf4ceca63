"""Expressions as compositions of action units, with the variation of real faces.

The prototypes are those of ``data_pipeline/labels/prototypes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipeline.labels.prototypes import PROTOTYPES
from data_pipeline.synth.actions import actions_for

SHARES: Mapping[str | None, float] = {
    **dict.fromkeys(
        ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger"), 0.098
    ),
    "contempt": 0.055,
    None: 0.26,  # free combinations: their expression is unknown
}
FREE = {"AU1": 0.36, "AU2": 0.36, "AU4": 0.36, "AU6": 0.3, "AU9": 0.25, "AU10": 0.3}
MOUTHS = ("AU12", "AU14", "AU15", "AU17", "AU18", "AU18", "AU18", "AU20", "AU24", None)
EXTRA = {
    "AU2": 0.03, "AU6": 0.04, "AU7": 0.06, "AU14": 0.09, "AU15": 0.03, "AU17": 0.03, "AU18": 0.16,
    "AU20": 0.03, "AU24": 0.03, "AU43": 0.15,
}  # fmt: skip
WEAK, BLEND = 0.10, 0.10  # shares of weak and of blended emotional expressions
_EXCLUDES = {
    "AU43": ("AU5",),
    "AU18": ("AU12", "AU20", "AU24", "AU14", "AU15", "AU25", "AU10"),
    "AU24": ("AU25", "AU26", "AU10", "AU18"),
    "AU14": ("AU15", "AU18", "AU20"),
    "AU17": ("AU26", "AU25", "AU20"),
    "AU7": ("AU5",),
}


def draw_expression(r: np.random.Generator) -> tuple[str | None, dict[str, float]]:
    """Draw an expression (None = a free combination) and its facial actions 0-1."""
    names = list(SHARES)
    name = names[
        int(r.choice(len(names), p=np.array(list(SHARES.values())) / sum(SHARES.values())))
    ]
    units = _free(r) if name is None else _prototype(name, r)
    if name is not None:
        _add_extras(units, name == "neutral", r)
    _add_traces(units, r)
    sides = {}
    if name == "contempt":
        side = str(r.choice(["Left", "Right"]))
        sides = {"AU12": side, "AU14": side}
    return name, _to_actions(units, sides, r)


def _strength(r: np.random.Generator, unit: str) -> float:
    return float(r.uniform(0.78 if unit == "AU43" else 0.48, 1.0))  # half-shut eyes are no label


def _prototype(name: str, r: np.random.Generator) -> dict[str, float]:
    units = {unit: _strength(r, unit) for unit, p in PROTOTYPES[name].items() if r.random() < p}
    kind = r.random()
    if name in ("neutral", "contempt"):
        return units
    if kind < WEAK:
        return {unit: 0.42 + 0.15 * (value - 0.48) for unit, value in units.items()}
    if kind < WEAK + BLEND:
        other = str(r.choice([n for n in PROTOTYPES if n not in (name, "neutral", "contempt")]))
        for unit in PROTOTYPES[other]:
            if unit not in units and r.random() < 0.5 and _compatible(unit, units):
                units[unit] = float(r.uniform(0.25, 0.45))
    return units


def _free(r: np.random.Generator) -> dict[str, float]:
    units = {unit: _strength(r, unit) for unit, p in FREE.items() if r.random() < p}
    eyes = r.choice(np.array(["AU5", "AU7", "AU43", ""]), p=[0.3, 0.27, 0.23, 0.2])
    mouth = MOUTHS[int(r.integers(len(MOUTHS)))]
    opening = r.choice(np.array(["AU25", "AU26", ""]), p=[0.25, 0.25, 0.5])
    for unit in (str(eyes), mouth, str(opening)):
        if unit and _compatible(unit, units):
            units[unit] = _strength(r, unit)
    return units


def _compatible(unit: str, units: Mapping[str, float]) -> bool:
    """Whether a unit can act together with those at work."""
    clash = any(other in units for other in _EXCLUDES.get(unit, ()))
    return not clash and not any(unit in _EXCLUDES.get(other, ()) for other in units)


def _add_extras(units: dict[str, float], neutral: bool, r: np.random.Generator) -> None:
    for unit, p in EXTRA.items():
        if neutral and unit != "AU43":
            continue
        if r.random() < p and unit not in units and _compatible(unit, units):
            units[unit] = _strength(r, unit)


def _add_traces(units: dict[str, float], r: np.random.Generator) -> None:
    """Traces (below grade B) of units that are otherwise absent."""
    for unit in ("AU1", "AU2", "AU4", "AU6", "AU12", "AU15", "AU17"):
        if r.random() < 0.12 and unit not in units and _compatible(unit, units):
            units[unit] = float(r.uniform(0.03, 0.18))


def _to_actions(
    units: Mapping[str, float], sides: Mapping[str, str], r: np.random.Generator
) -> dict[str, float]:
    """Facial actions, a little uneven between the sides, plus lips that part and a gaze."""
    plain = {unit: amount for unit, amount in units.items() if unit != "AU25"}
    actions = actions_for(plain, sides)
    for action in actions:
        if action.endswith("Right") and action.replace("Right", "Left") in actions:
            actions[action] *= float(r.uniform(0.85, 1.0))
    if "AU25" in units:
        amount = units["AU25"]
        for side in ("Left", "Right"):
            actions[f"mouthLowerDown{side}"] = amount
        actions["jawOpen"] = max(actions.get("jawOpen", 0.0), 0.06 + 0.12 * amount)
    across, up = r.uniform(-0.45, 0.45), r.uniform(-0.35, 0.35)
    left, right = ("Out", "In") if across > 0 else ("In", "Out")
    vertical = "Up" if up > 0 else "Down"
    gaze = {f"eyeLook{left}Left": abs(across), f"eyeLook{right}Right": abs(across)}
    gaze |= {f"eyeLook{vertical}{side}": abs(up) for side in ("Left", "Right")}
    merged = {**actions, **gaze}
    return {name: float(round(amount, 4)) for name, amount in merged.items()}
