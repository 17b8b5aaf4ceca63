"""One face as numbers: everything that is drawn before it is rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class FaceSpec:
    """One face: who it is, what it does, how it is lit and taken. Colours are linear RGB.

    Args:
        seed, index: the identity; every index is another person.
        gender: 0 male to 1 female; age: years; anny_age: the same on Anny's scale.
        weight, african, asian, caucasian: Anny's phenotypes.
        local: Anny's local changes by our names (``headmodel.LOCAL_CHANGES``), -1 to 1.
        actions: facial actions 0-1; prototype: the expression they were drawn for, None if none.
        yaw, pitch, roll: degrees, see ``render.pose_matrix``.
        melanin: 0 palest to 1 darkest skin.
        wrinkles, age_spots, freckles, blush, eye_shade, beard, moustache, bangs, recede: 0-1.
        brow_thickness, hair_volume: metres; hair_length: height on the template where hair ends.
        glasses_style: half width, half height, wire (metres), squareness.
        light_azimuth, light_elevation: degrees, azimuth > 0 on the image's right.
        distance: metres to the camera; framing: span of the frame relative to the usual.
        blur: radius in pixels; noise: standard deviation of the sensor noise, full scale 1.
        factor: what differs from the twin of a counterfactual pair; changed: this is the twin.
    """

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


def generator(seed: int, index: int, *stream: int) -> np.random.Generator:
    """The random stream of one face; groups of parameters have streams of their own."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, *stream])))
