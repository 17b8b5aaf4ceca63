"""DISFA+: comments in the label files, and a frame that one unit lacks."""

from __future__ import annotations

from pathlib import Path

from source_fixtures import Case, picture

NAME = "disfaplus"
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
TRIAL = "A1_AU1_TrailNo_1"


def write(root: Path) -> None:
    folder = root / "Labels" / "SN001" / TRIAL
    folder.mkdir(parents=True)
    for unit in UNITS:
        frames = {"000.jpg": 0, "001.jpg": {1: 5, 12: 3, 2: 1}.get(unit, 0)}
        if unit != 26:
            frames["002.jpg"] = 0
        lines = ["# frame intensity", *(f"{name} {grade}" for name, grade in frames.items()), ""]
        (folder / f"AU{unit}.txt").write_text("\r\n".join(lines))
    for name in ("000.jpg", "001.jpg", "002.jpg"):
        picture(root / "Images" / "SN001" / TRIAL / name)


CASES = [
    Case(
        records={
            f"disfaplus_SN001_{TRIAL}_000": (
                "test",
                {"action_units": {f"AU{unit}": 0.0 for unit in UNITS}},
            ),
            f"disfaplus_SN001_{TRIAL}_001": (
                "test",
                {
                    "action_units": {f"AU{unit}": 0.0 for unit in UNITS}
                    | {"AU1": 5.0, "AU2": 1.0, "AU12": 3.0}
                },
            ),
        },
        dropped={"frame is not in the file of every unit": 1},
        subjects={f"disfaplus_SN001_{TRIAL}_000": "disfa_SN001"},
    )
]
