"""Draws faces: every generating parameter of one face from (seed, index), whoever draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.synth.headmodel import LOCAL_CHANGES

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class FaceSpec:
    seed: int
    index: int
    split: str
    gender: float
    age: float
    anny_age: float
    weight: float
    african: float
    asian: float
    caucasian: float
    local: Mapping[str, float]
    actions: Mapping[str, float]
    prototype: str | None
    yaw: float
    pitch: float
    roll: float
    melanin: float
    skin: Colour
    wrinkles: float
    age_spots: float
    freckles: float
    blush: float
    eye_shade: float
    oil: float
    lips: Colour
    lip_mix: float
    lipstick: bool
    iris_name: str
    iris: Colour
    brow: Colour
    brow_thickness: float
    brow_density: float
    brow_arch: float
    brow_height: float
    hair_style: str
    hair_name: str
    hair: Colour
    hair_volume: float
    hair_length: float
    curl: float
    recede: float
    bangs: float
    beard: float
    moustache: float
    glasses: bool
    glasses_style: tuple[float, float, float, float]
    glasses_colour: Colour
    hat: bool
    hat_colour: Colour
    cloth: Colour
    collar: float
    light_azimuth: float
    light_elevation: float
    light_strength: float
    light_colour: Colour
    ambient: Colour
    background_kind: str
    background_light: float
    background_colours: tuple[Colour, Colour]
    distance: float
    framing: float
    shift_x: float
    shift_y: float
    blur: float
    noise: float
    exposure: float
    factor: str | None = None
    changed: bool = False


SKIN_SCALE = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
SKIN_TONES = np.array(
    [
        [0.80, 0.56, 0.46],
        [0.68, 0.43, 0.31],
        [0.47, 0.27, 0.165],
        [0.24, 0.125, 0.072],
        [0.095, 0.05, 0.032],
    ]
)
HAIR = {
    "black": (0.012, 0.010, 0.009),
    "brown": (0.085, 0.042, 0.02),
    "blond": (0.50, 0.34, 0.15),
    "gray": (0.44, 0.43, 0.42),
    "red": (0.28, 0.08, 0.022),
}
BROW = {
    "black": (0.008, 0.006, 0.005),
    "brown": (0.035, 0.018, 0.010),
    "blond": (0.14, 0.08, 0.035),
    "gray": (0.16, 0.155, 0.15),
    "red": (0.11, 0.035, 0.013),
}
IRIS = {
    "brown": (0.09, 0.04, 0.018),
    "blue": (0.16, 0.30, 0.50),
    "green": (0.16, 0.26, 0.10),
    "gray": (0.24, 0.27, 0.30),
}
AGE_YEARS = np.array([0.0, 1, 4, 11, 16, 18, 64, 110])
AGE_ANNY = np.array([0.0, 0.05, 0.215, 0.415, 0.67, 0.77, 0.83, 1.0])


def ramp(low, high, x):
    t = float(np.clip((x - low) / (high - low), 0, 1))
    return t * t * (3 - 2 * t)


def ageing(age):
    return ramp(35, 85, age)


def generator(seed, index, *stream):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, *stream])))


def sample_face(seed: int, index: int, split: str = "train") -> FaceSpec:
    r = generator(seed, index)
    from data_pipeline.synth.expressions import draw_expression

    prototype, actions = draw_expression(r)
    age = float(r.uniform(4, 88))
    male = bool(r.random() < 0.5)
    gender = float(r.uniform(0, 0.1)) if male else float(r.uniform(0.9, 1))
    african, asian, caucasian = (float(v) for v in r.dirichlet([0.5, 0.5, 0.5]) * 0.98 + 0.0066)
    melanin = float(np.clip(0.1 + 0.72 * african + 0.2 * asian + r.normal(0, 0.09), 0, 1))
    tone = np.array([np.interp(melanin, SKIN_SCALE, SKIN_TONES[:, c]) for c in range(3)])
    tone = tone * np.exp(r.normal(0, 0.04, 3)) * np.exp(r.normal(0, 0.06))
    adult = age >= 18
    old = ramp(35, 85, age)
    wrinkles = float(old * r.uniform(0.85, 1.1))
    gray = r.random() < ramp(38, 68, age)
    if gray:
        hair_name = "gray"
    elif melanin > 0.55:
        hair_name = str(r.choice(["black", "brown"], p=[0.85, 0.15]))
    else:
        hair_name = str(r.choice(["black", "brown", "blond", "red"], p=[0.27, 0.27, 0.36, 0.10]))
    hair = tuple(float(v) for v in np.array(HAIR[hair_name]) * np.exp(r.normal(0, 0.1)))
    bald = r.random() < ((0.10 + 0.25 * ramp(25, 60, age)) if male and adult else 0.03)
    u = r.random()
    if bald:
        style = "bald"
    elif male:
        style = "buzz" if u < 0.2 else "short" if u < 0.85 else "long"
    else:
        style = "short" if u < 0.25 else "long"
    hat = bool(r.random() < 0.1)
    bangs = (
        float(r.uniform(0.75, 1.0))
        if style in ("short", "long") and r.random() < (0.25 if male else 0.4)
        else 0.0
    )
    recede = float(
        r.uniform(0.6, 1)
        if male and age > 30 and style != "long" and bangs == 0 and r.random() < 0.35
        else 0.0
    )
    bearded = male and age > 19 and r.random() < 0.55
    full = bearded and r.random() < 0.6
    beard = float(r.uniform(0.8, 0.97)) if full else 0.0
    moustache = (
        float(r.uniform(0.8, 0.97)) if bearded and (full and r.random() < 0.85 or not full) else 0.0
    )
    lipstick = bool(not male and age > 14 and r.random() < 0.5)
    lips = (
        np.array([0.50, 0.015, 0.03]) * r.uniform(0.6, 1.2)
        if lipstick
        else tone * np.array([0.80, 0.52, 0.52])
    )
    if lipstick and r.random() < 0.3:
        lips = np.array([0.42, 0.02, 0.16])
    iris_name = (
        "brown"
        if melanin > 0.45 or r.random() < 0.35
        else str(r.choice(["blue", "green", "gray"], p=[0.5, 0.25, 0.25]))
    )
    bushy = r.random() < (0.45 if male else 0.2)
    local = {name: float(np.clip(r.normal(0, 0.28), -0.8, 0.8)) for name in LOCAL_CHANGES}
    for name, scale in (
        ("mouth_height", 0.5),
        ("eye_height", 0.7),
        ("head_height", 0.5),
        ("head_depth", 0.5),
        ("chin_height", 0.6),
        ("jaw_drop", 0.5),
        ("eye_tilt", 0.7),
        ("ear_wing", 0.6),
    ):
        local[name] *= scale
    local["head_age"] = 0.7 * old
    local["eye_bag"] += 0.5 * old
    local["laugh_lines"] = 0.4 * old
    chubby = r.random() < 0.25
    weight = float(r.uniform(0.85, 1.0)) if chubby else float(r.uniform(0.2, 0.6))
    local["head_fat"] = float(r.uniform(0.5, 0.9)) if chubby else float(r.uniform(-0.5, 0.05))
    local["double_chin"] = float(r.uniform(0.3, 0.8)) if chubby else float(r.uniform(-0.3, 0.1))
    big = r.random() < 0.25
    for name in ("upper_lip", "lower_lip", "upper_lip_volume", "lower_lip_volume"):
        local[name] = float(r.uniform(0.55, 0.9)) if big else float(r.uniform(-0.55, 0.1))
    wide = r.random() < 0.25
    for name in ("nose_width", "nose_volume", "nostrils"):
        local[name] = float(r.uniform(0.5, 0.9)) if wide else float(r.uniform(-0.5, 0.1))
    if r.random() < 0.35:
        yaw, pitch, roll = (float(v) for v in r.normal(0, [4, 3, 3]))
    else:
        yaw, pitch, roll = (
            float(np.clip(v, -c, c)) for v, c in zip(r.normal(0, [20, 10, 9]), (45, 25, 25))
        )
    side = r.random()
    azimuth = float(
        r.uniform(-75, -40)
        if side < 0.33
        else r.uniform(40, 75)
        if side < 0.66
        else r.uniform(-20, 20)
    )
    warmth = r.normal(0, 0.08)
    light = np.exp(np.array([warmth, 0, -warmth]))
    strength = float(r.uniform(0.7, 1.2))
    fill = float(r.uniform(0.22, 0.5))
    kind = r.random()
    level = float(
        r.uniform(0.6, 0.9)
        if kind < 0.33
        else r.uniform(0.01, 0.06)
        if kind < 0.66
        else r.uniform(0.12, 0.4)
    )

    def shade():
        c = np.exp(r.normal(0, 0.3, 3))
        c /= c.mean()
        return tuple(float(v) for v in np.clip(level * c * np.exp(r.normal(0, 0.12)), 0.002, 1.0))

    def colour():
        return tuple(float(v) for v in r.uniform(0.01, 0.6, 3) ** 1.5)

    round_frame = r.random() < 0.5
    return FaceSpec(
        seed,
        index,
        split,
        gender,
        age,
        float(np.interp(age, AGE_YEARS, AGE_ANNY)),
        weight,
        african,
        asian,
        caucasian,
        local,
        actions,
        prototype,
        yaw,
        pitch,
        roll,
        melanin,
        tuple(float(v) for v in tone),
        wrinkles,
        float(ramp(55, 85, age) * r.uniform(0.5, 1)),
        float(r.uniform(0.6, 1)) if melanin < 0.4 and age < 60 and r.random() < 0.2 else 0.0,
        float(r.uniform(0.55, 0.8)) if melanin < 0.45 and r.random() < 0.3 else 0.0,
        float(0.12 + 0.2 * old * r.random()),
        float(r.uniform(0.4, 1.2)),
        tuple(float(v) for v in lips),
        0.9 if lipstick else 0.75,
        lipstick,
        iris_name,
        IRIS[iris_name],
        tuple(float(v) for v in BROW[hair_name]),
        float(r.uniform(0.0044, 0.0056)) if bushy else float(r.uniform(0.0022, 0.0030)),
        float(r.uniform(0.85, 1)) if bushy else float(r.uniform(0.7, 0.95)),
        float(r.uniform(0.001, 0.004)),
        float(r.normal(0, 0.0004)),
        style,
        hair_name,
        hair,
        float(r.uniform(0.006, 0.018)),
        float(r.uniform(0.52, 0.60)),
        float(r.uniform(0.5, 1) if r.random() < (0.7 if african > 0.5 else 0.2) else 0.0),
        recede,
        bangs,
        beard,
        moustache,
        bool(r.random() < 0.28),
        (
            float(r.uniform(0.022, 0.026)),
            float(r.uniform(0.019, 0.023) if round_frame else r.uniform(0.014, 0.018)),
            float(r.uniform(0.002, 0.0042)),
            float(r.uniform(0, 0.15) if round_frame else r.uniform(0.4, 1)),
        ),
        (0.01, 0.01, 0.012) if r.random() < 0.6 else colour(),
        hat,
        colour(),
        colour(),
        float(r.uniform(-0.012, 0.012)),
        azimuth,
        float(r.uniform(5, 60)),
        strength,
        tuple(float(v * strength) for v in light),
        tuple(float(v * fill) for v in np.exp(r.normal(0, 0.05, 3))),
        str(r.choice(["gradient", "noise", "shapes"])),
        level,
        (shade(), shade()),
        float(np.exp(r.uniform(np.log(0.5), np.log(1.8)))),
        float(r.uniform(0.92, 1.06)),
        float(r.normal(0, 0.015)),
        float(r.normal(0, 0.015)),
        float(max(0, r.normal(-0.2, 0.5))),
        float(r.uniform(0, 0.02)),
        float(np.exp(r.normal(0, 0.12))),
    )
