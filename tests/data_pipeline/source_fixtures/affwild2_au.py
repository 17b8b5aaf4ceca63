"""Aff-Wild2: rows counted from 1, whole rows and single cells of -1, other tasks beside it."""

from __future__ import annotations

from pathlib import Path

from source_fixtures import Case, picture

NAME = "affwild2_au"
UNITS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
HEADER = ",".join(f"AU{unit}" for unit in UNITS)


def write(root: Path) -> None:
    tasks = root / "Third ABAW Annotations"
    for folder in ("Train_Set", "Validation_Set"):
        (tasks / "AU_Detection_Challenge" / folder).mkdir(parents=True)
        (tasks / "EXPR_Classification_Challenge" / folder).mkdir(parents=True)
        expressions = "Neutral,Anger,Disgust\r\n0\r\n"
        (tasks / "EXPR_Classification_Challenge" / folder / "v.txt").write_text(expressions)
    units = tasks / "AU_Detection_Challenge"
    rows = ["1,0,0,0,0,0,0,0,0,0,1,-1", ",".join(["-1"] * 12), "0,0,0,0,0,0,1,0,0,0,0,0"]
    (units / "Train_Set" / "1-30.txt").write_text("\r\n".join([HEADER, *rows]) + "\r\n")
    (units / "Validation_Set" / "7_left.txt").write_text("\n".join([HEADER, rows[2]]))
    for path in ("1-30/00001.jpg", "1-30/00003.jpg", "7_left/00001.jpg"):
        picture(root / "cropped_aligned" / path)


def units(*present: int, unknown: tuple[int, ...] = ()):
    known = [unit for unit in UNITS if unit not in unknown]
    return {"action_units": {f"AU{unit}": unit in present for unit in known}}


def frames(validation: str):
    return {
        "affwild2_au_1-30_00001": ("train", units(1, 25, unknown=(26,))),
        "affwild2_au_1-30_00003": ("train", units(12)),
        "affwild2_au_7_left_00001": (validation, units(12)),
    }


DROPPED = {"frame was not annotated (-1)": 1}
CASES = [
    Case(
        records=frames("val"),
        dropped=DROPPED,
        subjects={"affwild2_au_1-30_00003": "affwild2_au_1-30"},
    ),
    Case(
        records=frames("test"),
        protocol="affwild2_au/validation-as-test",
        dropped=DROPPED,
    ),
]
