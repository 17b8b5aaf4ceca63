"""DISFA: au1, au12 and au2 differ, so a listing read in order would mix them up."""

from __future__ import annotations

from pathlib import Path

from source_fixtures import Case, picture

NAME = "disfa"
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
EIGHT = (1, 2, 4, 6, 9, 12, 25, 26)
GRADES = {1: [5, 0, 0], 2: [1, 2, 0], 12: [0, 3, 1]}  # three frames; other units are 0 throughout


def write_labels(root: Path, person: str, newline: str = "\n") -> None:
    folder = root / "ActionUnit_Labels" / person
    folder.mkdir(parents=True)
    for unit in UNITS:
        grades = GRADES.get(unit, [0, 0, 0])
        lines = [f"{frame},{grade}" for frame, grade in enumerate(grades, start=1)]
        text = newline.join(lines) + newline
        (folder / f"{person}_au{unit}.txt").write_bytes(text.encode())


def write(root: Path) -> None:
    write_labels(root, "SN001")  # in P1
    write_labels(root, "SN003", "\r\n")  # in P3
    write_labels(root, "SN099")  # in no part
    (root / "Landmark_Points" / "SN001").mkdir(parents=True)
    for number in range(4):  # one decoded frame more than labelled
        picture(root / "Frames" / "SN001" / f"{number}.png")
    for number in (0, 2):  # the second was lost
        picture(root / "Frames" / "SN003" / f"{number}.png")


def labels(frame: int, units=EIGHT):
    grades = {unit: GRADES.get(unit, [0, 0, 0])[frame - 1] for unit in units}
    return {"action_units": {f"AU{unit}": float(grade) for unit, grade in grades.items()}}


def expected(first: str, third: str, **arguments):
    frames = {"SN001": (first, (1, 2, 3)), "SN003": (third, (1, 3))}
    return {
        f"disfa_{person}_{frame:04d}": (split, labels(frame, **arguments))
        for person, (split, numbers) in frames.items()
        for frame in numbers
    }


def drops(protocol: str):
    return {
        f"person is in no part of {protocol}": 1,
        "no picture of the frame": 1,
        "picture beyond the labelled frames": 1,
    }


CASES = [
    Case(
        records=expected("train", "test"),
        options={"frame_offset": -1},
        dropped=drops("disfa/3fold-ge2-fold1"),
        subjects={"disfa_SN001_0002": "disfa_SN001"},
    ),
    Case(
        protocol="disfa/3fold-ge1-fold3",
        records=expected("test", "train"),
        options={"frame_offset": -1, "images": "Frames"},
        dropped=drops("disfa/3fold-ge1-fold3"),
    ),
    Case(
        protocol="disfa/3fold-12au-fold2",
        records=expected("train", "train", units=UNITS),
        options={"frame_offset": -1},
        dropped=drops("disfa/3fold-12au-fold2"),
    ),
    Case(
        protocol="disfa/without-disfaplus",
        records={},
        options={"frame_offset": -1},
        dropped={"person is in no part of disfa/without-disfaplus": 3},
    ),
]
