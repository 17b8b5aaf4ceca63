"""BP4D: both headers, names of three and four digits, 9 for not coded."""

from __future__ import annotations

from pathlib import Path

from source_fixtures import Case, picture

NAME = "bp4d"
UNITS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
GRADED = (6, 10, 12, 14, 17)
NAMED = [1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28]


def sheet(header: list[int], frames: dict[int, dict[int, int]], newline: str) -> str:
    rows = [",".join(map(str, header))]
    for frame, codes in frames.items():
        default = codes.get(0, 0)  # what every unit has that is not named
        rows.append(",".join(map(str, [frame, *(codes.get(n, default) for n in header[1:])])))
    return newline.join(rows) + newline


def write(root: Path) -> None:
    occurrence = root / "AUCoding" / "AU_OCC"
    occurrence.mkdir(parents=True)
    # numbered columns, part A
    frames = {18: {1: 1, 12: 1, 2: 9}, 2440: {10: 1}, 2441: {0: 9}}
    (occurrence / "F001_T1.csv").write_text(sheet(list(range(100)), frames, "\r\n"))
    # named columns whose first cell repeats the first unit, part C
    (occurrence / "M009_T8.csv").write_text(sheet([1, *NAMED], {7: {1: 1, 24: 9}}, "\n"))
    (occurrence / "F099_T1.csv").write_text(sheet([1, *NAMED], {1: {}}, "\n"))
    for unit in GRADED:
        folder = root / "AUCoding" / "AU_INT" / f"AU{unit:02d}"
        folder.mkdir(parents=True)
        lines = [f"18,{9 if unit == 6 else 0}", f"2440,{5 if unit == 10 else 0}", "2441,9"]
        (folder / f"F001_T1_AU{unit:02d}.csv").write_text("\n".join(lines))
    pictures = root / "Sequences_2D+3D"
    for path in ("F001/T1/0018.jpg", "F001/T1/2440.jpg", "F001/T1/2441.jpg", "M009/T8/007.jpg"):
        picture(pictures / path)
    (pictures / "F001" / "T1" / "2440.obj").write_text("a mesh")


def coded(**known: bool) -> dict[str, dict[str, bool]]:
    return {"action_units": {f"AU{unit}": False for unit in UNITS} | known}


def without(unit: str, labels):
    return {"action_units": {k: v for k, v in labels["action_units"].items() if k != unit}}


FIRST = without("AU2", coded(AU1=True, AU12=True))
LAST = without("AU24", coded(AU1=True))

CASES = [
    Case(
        records={
            "bp4d_F001_T1_0018": ("train", FIRST),
            "bp4d_F001_T1_2440": ("train", coded(AU10=True)),
            "bp4d_M009_T8_0007": ("test", LAST),
        },
        dropped={
            "no unit is coded (9)": 1,
            "person is in no part of bp4d/3fold-occ-fold1": 1,
        },
        subjects={"bp4d_M009_T8_0007": "bp4d_M009"},
    ),
    Case(
        protocol="bp4d/3fold-int-fold3",
        records={
            "bp4d_F001_T1_0018": (
                "test",
                {"action_units": {"AU10": 0.0, "AU12": 0.0, "AU14": 0.0, "AU17": 0.0}},
            ),
            "bp4d_F001_T1_2440": (
                "test",
                {"action_units": {f"AU{unit}": 5.0 if unit == 10 else 0.0 for unit in GRADED}},
            ),
        },
        dropped={"no unit is coded (9)": 1},
    ),
]
