"""Draws faces: every generating parameter of one face from (seed, index), whoever draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline.synth.expressions import draw_expression
from data_pipeline.synth.headmodel import LOCAL_CHANGES
from data_pipeline.synth.spec import Colour, FaceSpec, generator

SKIN_SCALE = (0.0, 0.25, 0.5, 0.75, 1.0)  # melanin of the tones below
SKIN_TONES = np.array([
    [0.80, 0.56, 0.46], [0.68, 0.43, 0.31], [0.47, 0.27, 0.165], [0.24, 0.125, 0.072],
    [0.095, 0.05, 0.032],
])  # fmt: skip
HAIR_COLOURS: Mapping[str, Colour] = {
    "black": (0.012, 0.010, 0.009),
    "brown": (0.085, 0.042, 0.020),
    "blond": (0.50, 0.34, 0.15),
    "gray": (0.44, 0.43, 0.42),
    "red": (0.36, 0.075, 0.014),
}
BROW_COLOURS: Mapping[str, Colour] = {
    "black": (0.008, 0.006, 0.005),
    "brown": (0.035, 0.018, 0.010),
    "blond": (0.14, 0.08, 0.035),
    "gray": (0.16, 0.155, 0.15),
    "red": (0.11, 0.035, 0.013),
}
IRIS_COLOURS: Mapping[str, Colour] = {
    "brown": (0.09, 0.04, 0.018),
    "blue": (0.18, 0.38, 0.68),
    "green": (0.16, 0.27, 0.09),
    "gray": (0.24, 0.27, 0.30),
}
# Anny's morphological age mapping (shape_calibration/boys.pth): years -> its age parameter
AGE_YEARS = (0.0, 1.0, 4.0, 11.0, 16.0, 18.0, 64.0, 110.0)
AGE_ANNY = (0.0, 0.05, 0.215, 0.415, 0.67, 0.77, 0.83, 1.0)
YOUNGEST, OLDEST = 4.0, 90.0
_CALMER = {  # local changes that could be taken for an action, an age or a pose vary less
    "mouth_height": 0.5, "eye_height": 0.6, "head_height": 0.5, "head_depth": 0.5,
    "chin_height": 0.6, "jaw_drop": 0.5, "eye_tilt": 0.7, "ear_wing": 0.6, "eye_bag": 0.4,
}  # fmt: skip


def anny_age(years: float) -> float:
    """Anny's age parameter for an age in years, by Anny's own calibration."""
    return float(np.interp(years, AGE_YEARS, AGE_ANNY))


def ageing(years: float) -> float:
    """How far the skin has aged, 0 (up to 22 years) to 1 (90 years)."""
    return float(np.clip((years - 22) / 68, 0, 1))


def sample_face(seed: int, index: int, split: str = "train") -> FaceSpec:
    """Draw the face ``index``; the same numbers give the same face in any process."""
    streams = [generator(seed, index, 100 + k) for k in range(7)]
    person = _person(streams[0])
    prototype, actions = draw_expression(streams[1])
    return FaceSpec(
        seed=seed,
        index=index,
        split=split,
        **person,
        local=_shape(streams[2], person),
        actions=actions,
        prototype=prototype,
        **_skin(streams[3], person),
        **_hair(streams[4], person),
        **_worn(streams[5]),
        **_picture(streams[6]),
    )


def _chance(r: np.random.Generator, p: float) -> bool:
    return bool(r.random() < p)


def _floats(values: Any) -> Any:
    return tuple(float(value) for value in values)


def _person(r: np.random.Generator) -> dict[str, Any]:
    """Gender, age, ancestry, build and skin tone."""
    age = float(YOUNGEST + (OLDEST - YOUNGEST) * r.random() ** 1.2)
    female = _chance(r, 0.5)
    african, asian, caucasian = _floats(r.dirichlet([0.5, 0.5, 0.5]) * 0.97 + 0.01)
    melanin = float(np.clip(0.1 + 0.72 * african + 0.2 * asian + r.normal(0, 0.09), 0, 1))
    chubby = _chance(r, 0.25)
    return {
        "gender": float(r.uniform(0.92, 1) if female else r.uniform(0, 0.08)),
        "age": age,
        "anny_age": anny_age(age),
        "weight": float(r.uniform(0.85, 1.0) if chubby else r.uniform(0.2, 0.6)),
        "african": african,
        "asian": asian,
        "caucasian": caucasian,
        "melanin": melanin,
    }


def _shape(r: np.random.Generator, person: Mapping[str, Any]) -> dict[str, float]:
    """Local changes: personal variation, and what gender, age and build bring with them."""
    local = {
        name: float(np.clip(r.normal(0, 0.28 * _CALMER.get(name, 1.0)), -0.8, 0.8))
        for name in LOCAL_CHANGES
    }
    local |= age_changes(person["age"], local["eye_bag"])
    grown = float(np.clip((person["age"] - 10) / 8, 0, 1))
    tilt = grown * (1 if person["gender"] < 0.5 else -1)
    for name, amount in (("chin_width", 0.3), ("chin_bones", 0.25), ("neck_width", 0.4)):
        local[name] += amount * tilt
    local["eye_scale"] -= 0.2 * tilt
    chubby = person["weight"] > 0.8
    local["head_fat"] = float(r.uniform(0.75, 1) if chubby else r.uniform(-0.5, -0.05))
    local["double_chin"] = float(r.uniform(0.6, 1) if chubby else r.uniform(-0.3, 0.1))
    if chubby:
        local["cheek_volume"] = float(r.uniform(0.5, 0.9))
    lips = ("upper_lip", "lower_lip", "upper_lip_volume", "lower_lip_volume")
    local |= _two_kinds(r, lips, (0.75, 1.0), (-0.6, 0.0))
    nose = ("nose_width", "nose_volume", "nose_tip_width", "nostrils")
    return local | _two_kinds(r, nose, (0.75, 1.0), (-0.6, 0.0))


def age_changes(years: float, eye_bag: float = 0.0) -> dict[str, float]:
    """Local changes that age brings to a face whose own bags under the eyes are ``eye_bag``."""
    old = ageing(years)
    return {
        "head_age": 0.75 * old,
        "eye_bag": float(np.clip(eye_bag + 0.45 * old, -0.8, 0.9)),
        "laugh_lines": 0.4 * old,
    }


def _two_kinds(
    r: np.random.Generator,
    names: tuple[str, ...],
    large: tuple[float, float],
    small: tuple[float, float],
) -> dict[str, float]:
    """A quarter of people have the feature large; nobody lies in between."""
    low, high = large if _chance(r, 0.25) else small
    return {name: float(r.uniform(low, high)) for name in names}


def _skin(r: np.random.Generator, person: Mapping[str, Any]) -> dict[str, Any]:
    melanin, age = person["melanin"], person["age"]
    tone = np.array([np.interp(melanin, SKIN_SCALE, SKIN_TONES[:, c]) for c in range(3)])
    tone = tone * np.exp(r.normal(0, 0.04, 3)) * np.exp(r.normal(0, 0.06))
    lipstick = _chance(r, 0.55) and person["gender"] > 0.5 and age > 14
    rouge = np.array([[0.50, 0.015, 0.03], [0.42, 0.02, 0.16]][_chance(r, 0.3)])
    lips = rouge * r.uniform(0.6, 1.2) if lipstick else tone * np.array([0.80, 0.52, 0.52])
    brown = melanin > 0.45 or _chance(r, 0.35)
    iris = "brown" if brown else str(r.choice(["blue", "green", "gray"], p=[0.5, 0.3, 0.2]))
    blush, freckles = _chance(r, 0.3), _chance(r, 0.3)
    return {
        "skin": _floats(tone),
        "wrinkles": ageing(age) * float(r.uniform(0.95, 1.05)),
        "age_spots": age_spots(age),
        "freckles": float(r.uniform(0.7, 1) if freckles and melanin < 0.4 and age < 60 else 0),
        "blush": float(r.uniform(0.75, 1.0) if blush and melanin < 0.45 else 0),
        "eye_shade": 0.12 + 0.2 * ageing(age),
        "oil": float(r.uniform(0.4, 1.2)),
        "lips": _floats(lips),
        "lipstick": lipstick,
        "iris_name": iris,
        "iris": IRIS_COLOURS[iris],
    }


def age_spots(years: float) -> float:
    """Strength of age spots, 0 up to 50 years and 1 at 90."""
    return float(np.clip((years - 50) / 40, 0, 1))


def _hair(r: np.random.Generator, person: Mapping[str, Any]) -> dict[str, Any]:
    male, age = person["gender"] < 0.5, person["age"]
    name = _hair_colour(r, age, person["melanin"])
    style = _hair_style(r, male, age, name)
    fringed = style in ("short", "long") and _chance(r, 0.25 if male else 0.4)
    receding = male and age > 30 and style in ("short", "buzz") and _chance(r, 0.45)
    curly = _chance(r, 0.7 if person["african"] > 0.5 else 0.2)
    bushy = _chance(r, 0.45 if male else 0.2)
    return {
        "hair_style": style,
        "hair_name": name,
        "hair": _floats(np.array(HAIR_COLOURS[name]) * np.exp(r.normal(0, 0.1))),
        "hair_volume": float(r.uniform(0.006, 0.018)),
        "hair_length": float(r.uniform(0.52, 0.60)),
        "curl": float(r.uniform(0.5, 1)) if curly else 0.0,
        "recede": float(r.uniform(0.7, 1)) if receding and not fringed else 0.0,
        "bangs": float(r.uniform(0.75, 1)) if fringed else 0.0,
        "brow": BROW_COLOURS[name],
        "brow_thickness": float(r.uniform(0.005, 0.0062) if bushy else r.uniform(0.002, 0.0028)),
        "brow_density": float(r.uniform(0.9, 1) if bushy else r.uniform(0.65, 0.85)),
        "brow_arch": float(r.uniform(0.001, 0.004)),
        "brow_height": float(r.normal(0, 0.0004)),
        **_beard(r, male and age > 19),
    }


def _hair_colour(r: np.random.Generator, age: float, melanin: float) -> str:
    if _chance(r, float(np.clip((age - 35) / 30, 0, 1))):
        return "gray"
    if melanin > 0.55:
        return "black" if _chance(r, 0.85) else "brown"
    return str(r.choice(["black", "brown", "blond", "red"], p=[0.24, 0.25, 0.31, 0.20]))


def _hair_style(r: np.random.Generator, male: bool, age: float, colour: str) -> str:
    bald = 0.1 + 0.25 * float(np.clip((age - 25) / 35, 0, 1)) if male and age > 18 else 0.03
    if _chance(r, bald):
        return "bald"
    dark = colour in ("black", "brown")  # fair hair cropped close could be taken for none
    shares = [0.25 * dark, 0.85 - 0.25 * dark, 0.15] if male else [0.0, 0.25, 0.75]
    return str(r.choice(["buzz", "short", "long"], p=shares))


def _beard(r: np.random.Generator, can_grow: bool) -> dict[str, float]:
    """A full beard, with or without a moustache, a moustache alone, or neither."""
    kind = str(r.choice(["none", "both", "beard", "moustache"], p=[0.4, 0.32, 0.08, 0.2]))
    beard, moustache = r.uniform(0.8, 0.97, 2)
    return {
        "beard": float(beard) if can_grow and kind in ("both", "beard") else 0.0,
        "moustache": float(moustache) if can_grow and kind in ("both", "moustache") else 0.0,
    }


def _any_colour(r: np.random.Generator) -> Colour:
    return _floats(r.uniform(0.01, 0.6, 3) ** 1.5)


def _worn(r: np.random.Generator) -> dict[str, Any]:
    rounded = _chance(r, 0.5)
    height = r.uniform(0.019, 0.023) if rounded else r.uniform(0.014, 0.018)
    square = r.uniform(0, 0.15) if rounded else r.uniform(0.4, 1)
    style = (r.uniform(0.022, 0.026), height, r.uniform(0.002, 0.0042), square)
    return {
        "glasses": _chance(r, 0.28),
        "glasses_style": _floats(style),
        "glasses_colour": (0.01, 0.01, 0.012) if _chance(r, 0.6) else _any_colour(r),
        "hat": _chance(r, 0.14),
        "hat_colour": _any_colour(r),
        "cloth": _any_colour(r),
        "collar": float(r.uniform(-0.012, 0.012)),
    }


def _picture(r: np.random.Generator) -> dict[str, Any]:
    """Pose, light, background and camera."""
    return {
        **_pose(r),
        **_light(r),
        **_background(r),
        "distance": float(np.exp(r.uniform(np.log(0.5), np.log(1.8)))),
        "framing": float(r.uniform(0.92, 1.08)),
        "shift_x": float(r.normal(0, 0.015)),
        "shift_y": float(r.normal(0, 0.015)),
        "blur": float(max(0.0, r.normal(-0.2, 0.5))),
        "noise": float(r.uniform(0, 0.02)),
        "exposure": float(np.exp(r.normal(0, 0.12))),
    }


def _pose(r: np.random.Generator) -> dict[str, float]:
    """A third near frontal, the rest moderate, up to 45 degrees of yaw."""
    if _chance(r, 0.34):
        angles = r.normal(0, [4, 3, 3])
    else:
        angles = np.clip(r.normal(0, [20, 10, 9]), [-45, -25, -25], [45, 25, 25])
    return dict(zip(("yaw", "pitch", "roll"), _floats(angles), strict=True))


def _light(r: np.random.Generator) -> dict[str, Any]:
    """Key light from the left, the right or the front; its warmth; the fill from all around."""
    low, high = [(-75, -40), (-20, 20), (40, 75)][int(r.integers(3))]
    warmth = r.normal(0, 0.08)
    key = r.uniform(0.7, 1.2) * np.exp([warmth, 0, -warmth])
    fill = r.uniform(0.22, 0.5) * np.exp(r.normal(0, 0.05, 3))
    return {
        "light_azimuth": float(r.uniform(low, high)),
        "light_elevation": float(r.uniform(5, 60)),
        "light_colour": _floats(key),
        "ambient": _floats(fill),
    }


def _background(r: np.random.Generator) -> dict[str, Any]:
    """Light, dark or middling; a gradient, soft noise or blurred shapes."""
    low, high = [(0.6, 0.9), (0.01, 0.06), (0.12, 0.4)][int(r.integers(3))]
    level = float(r.uniform(low, high))

    def shade() -> Colour:
        tint = np.exp(r.normal(0, 0.3, 3))
        colour = level * tint / tint.mean() * np.exp(r.normal(0, 0.12))
        return _floats(np.clip(colour, 0.002, 1.0))

    return {
        "background_kind": str(r.choice(["gradient", "noise", "shapes"])),
        "background_light": level,
        "background_colours": (shade(), shade()),
    }
