"""Pairs of the same face that differ in exactly one factor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipeline.synth.actions import UNIT_ACTIONS, actions_for, unit_intensities
from data_pipeline.synth.sample import age_changes, age_spots, ageing, anny_age
from data_pipeline.synth.spec import FaceSpec, generator


def pair_of(spec: FaceSpec) -> tuple[FaceSpec, FaceSpec]:
    """Return the face and its twin; both name the factor that differs."""
    r = generator(spec.seed, spec.index, 3)
    names = list(FACTORS)
    for at in r.permutation(len(names)):
        twin = FACTORS[names[at]](spec, r)
        if twin is not None:
            factor, changed = twin
            # what the twin is not known to express, its pair is not either
            first = dataclasses.replace(spec, factor=factor, prototype=changed.prototype)
            return first, dataclasses.replace(changed, factor=factor, changed=True)
    raise AssertionError("the pose can always be changed")


Twin = tuple[str, FaceSpec] | None


def _unit(spec: FaceSpec, r: np.random.Generator) -> Twin:
    """Switch one action unit on or off; the expression of both is then unknown."""
    unit = str(r.choice([u for u in UNIT_ACTIONS if u not in ("AU24", "AU26")]))
    actions = dict(spec.actions)
    names = actions_for({unit: 1.0})
    if unit_intensities(actions)[unit] > 0:
        for name in names:
            actions.pop(name, None)
    else:
        amount = float(r.uniform(0.6, 1.0))
        actions |= dict.fromkeys(names, round(amount, 4))
    return unit, dataclasses.replace(spec, actions=actions, prototype=None)


def _glasses(spec: FaceSpec, r: np.random.Generator) -> Twin:
    return "eyeglasses", dataclasses.replace(spec, glasses=not spec.glasses)


def _beard(spec: FaceSpec, r: np.random.Generator) -> Twin:
    if spec.gender > 0.5 or spec.age < 20:
        return None
    return "beard", dataclasses.replace(spec, beard=0.0 if spec.beard else 0.9)


def _hat(spec: FaceSpec, r: np.random.Generator) -> Twin:
    return "wearing_hat", dataclasses.replace(spec, hat=not spec.hat)


def _age(spec: FaceSpec, r: np.random.Generator) -> Twin:
    """Older or younger by at least 20 years, with what age alone decides."""
    years = float(r.uniform(55, 85) if spec.age < 40 else r.uniform(18, spec.age - 20))
    return "age", aged(spec, years)


def aged(spec: FaceSpec, years: float) -> FaceSpec:
    """The same person at another age; hair keeps its colour and style."""
    own_bags = spec.local["eye_bag"] - age_changes(spec.age)["eye_bag"]
    return dataclasses.replace(
        spec,
        age=years,
        anny_age=anny_age(years),
        wrinkles=ageing(years),
        age_spots=age_spots(years),
        eye_shade=0.12 + 0.2 * ageing(years),
        local={**spec.local, **age_changes(years, own_bags)},
    )


def _pose(spec: FaceSpec, r: np.random.Generator) -> Twin:
    sign = -1 if spec.yaw > 0 else 1
    return "yaw", dataclasses.replace(spec, yaw=spec.yaw + sign * float(r.uniform(20, 40)))


FACTORS: dict[str, Callable[[FaceSpec, np.random.Generator], Twin]] = {
    "unit": _unit,
    "unit_again": _unit,
    "unit_once_more": _unit,
    "glasses": _glasses,
    "beard": _beard,
    "hat": _hat,
    "age": _age,
    "pose": _pose,
}
