"""Exact labels of a synthetic face, in the canonical names of ``data_pipeline.labels``.

An attribute whose parameter lies between its two thresholds is left out (unknown), so every
answer that is asked for can be seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipeline.synth.actions import FACIAL_ACTIONS, unit_intensities
from data_pipeline.synth.spec import FaceSpec


def labels_of(spec: FaceSpec) -> dict[str, Any]:
    """All labels of one face."""
    units = unit_intensities(spec.actions)
    labels: dict[str, Any] = {
        "action_units": units,
        "attributes": attributes_of(spec, units),
        "age": round(spec.age, 2),
        "head_pose": {
            "yaw": round(spec.yaw, 2),
            "pitch": round(spec.pitch, 2),
            "roll": round(spec.roll, 2),
        },
        "gender": "male" if spec.gender < 0.5 else "female",
        "facial_actions": {name: spec.actions.get(name, 0.0) for name in FACIAL_ACTIONS},
        "parameters": parameters_of(spec),
    }
    if spec.prototype is not None:
        labels["expression"] = spec.prototype
    return labels


def _between(value: float, false_below: float, true_above: float) -> bool | None:
    """True from ``true_above``, False up to ``false_below``, None (unknown) in between."""
    if value >= true_above:
        return True
    return False if value <= false_below else None


def _hair(spec: FaceSpec) -> dict[str, bool | None]:
    hidden = spec.hat and spec.hair_style != "long"
    styles: dict[str, bool | None] = dict.fromkeys(("bald", "long_hair", "bangs"))
    colours: dict[str, bool | None] = {
        f"{name}_hair": None for name in ("black", "brown", "blond", "gray", "red")
    }
    if spec.hair_style == "bald":
        known = not spec.hat
        styles = {"bald": known or None, "long_hair": False, "bangs": False if known else None}
    else:
        styles["long_hair"] = spec.hair_style == "long"
        styles["bald"] = None if hidden else False
        styles["bangs"] = None if spec.hat else spec.bangs > 0
        if not hidden and spec.hair_style != "buzz":
            colours = {name: name == f"{spec.hair_name}_hair" for name in colours}
    return {**styles, **colours, "receding_hairline": None if spec.hat else _receding(spec)}


def _receding(spec: FaceSpec) -> bool | None:
    if spec.hair_style in ("bald", "long") or spec.bangs > 0:
        return None if spec.hair_style == "bald" else False
    return spec.recede > 0


def _skin_and_build(spec: FaceSpec) -> dict[str, bool | None]:
    return {
        "pale_skin": _between(-spec.melanin, -0.4, -0.25),
        "dark_skin": _between(spec.melanin, 0.45, 0.6),
        "rosy_cheeks": None if spec.melanin > 0.45 and spec.blush else spec.blush > 0,
        "freckles": spec.freckles > 0,
        "wrinkles": _between(spec.wrinkles, 0.12, 0.45),
        "bushy_eyebrows": _between(spec.brow_thickness, 0.003, 0.0048),
        "big_lips": _between(spec.local["upper_lip"], 0.05, 0.7),
        "big_nose": _between(spec.local["nose_width"], 0.05, 0.7),
        "chubby": _between(spec.local["head_fat"], 0.0, 0.7),
        "male": None if spec.age < 15 else spec.gender < 0.5,
        "young": _between(-spec.age, -50, -35),
        "child": _between(-spec.age, -17, -12),
        "elderly": _between(spec.age, 55, 65),
    }


def _blue(iris: str) -> bool | None:
    """Gray and green irises can pass for blue in a small picture: unknown."""
    return {"blue": True, "brown": False}.get(iris)


def _worn_and_grown(spec: FaceSpec) -> dict[str, bool | None]:
    return {
        "eyeglasses": spec.glasses,
        "wearing_hat": spec.hat,
        "wearing_lipstick": spec.lipstick,
        "beard": spec.beard > 0,
        "mustache": spec.moustache > 0,
    }


def _picture(spec: FaceSpec) -> dict[str, bool | None]:
    return {
        "light_background": _between(spec.background_light, 0.42, 0.55),
        "dark_background": _between(-spec.background_light, -0.11, -0.065),
        "light_from_left": _between(-spec.light_azimuth, 22, 38),
        "light_from_right": _between(spec.light_azimuth, 22, 38),
    }


def attributes_of(spec: FaceSpec, units: dict[str, float]) -> dict[str, bool]:
    """Known attributes; one in its grey zone, or hidden, is absent."""
    smile = 0.5 * (
        spec.actions.get("mouthSmileLeft", 0.0) + spec.actions.get("mouthSmileRight", 0.0)
    )
    raw: dict[str, bool | None] = {
        "smiling": _between(smile, 0.2, 0.38),
        "mouth_open": _between(units["AU25"], 1.0, 2.5),
        "eyes_closed": _between(units["AU43"], 1.0, 3.5),
        **_hair(spec),
        **_skin_and_build(spec),
        **_worn_and_grown(spec),
        **_picture(spec),
    }
    if units["AU43"] < 1.0:
        raw |= {"brown_eyes": spec.iris_name == "brown", "blue_eyes": _blue(spec.iris_name)}
    return {name: value for name, value in sorted(raw.items()) if value is not None}


def parameters_of(spec: FaceSpec) -> dict[str, Any]:
    """Every generating parameter, ready for json."""
    values = dataclasses.asdict(spec)
    for name in ("actions", "factor", "changed"):
        values.pop(name)
    if spec.factor is not None:
        values["counterfactual"] = spec.factor
    return _rounded(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
