"""RAF-AU: one-sided codes, null, blanks at the end of lines."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.sources.base import hash_split
from source_fixtures import Case, picture

NAME = "rafau"
UNITS = [1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 32, 39]
LINES = [
    "0001.jpg 1+2+L12+R12 ",  # both sides: AU12, and no side
    "0002.jpg null  ",
    "0003.jpg L12+R10+10+T23+51",  # AU12 on the left; AU10 also on both; 51 is a head code
    "4.jpg 43",
]


def write(root: Path) -> None:
    (root / "RAFAU_label.txt").write_text("\r\n".join(LINES) + "\r\n\r\n")
    for number in (1, 2, 3, 4):
        picture(root / "aligned" / f"{number:04d}_aligned.jpg")


def present(*units: int, vocabulary=UNITS):
    listed = {f"AU{unit}": True for unit in units}
    return {"action_units": {f"AU{unit}": False for unit in vocabulary} | listed}


SIDE = {"action_unit_sides": {"AU12": "left"}}


def cases(vocabulary):
    labels = {
        "rafau_0001": present(1, 2, 12, vocabulary=vocabulary),
        "rafau_0003": present(10, 12, 23, vocabulary=vocabulary) | SIDE,
        "rafau_0004": present(43, vocabulary=vocabulary),
    }
    return {key: (hash_split(key), value) for key, value in labels.items()}


DROPPED = {"no action unit was coded (null)": 1}
CASES = [
    Case(records=cases(UNITS), dropped=DROPPED, subjects={"rafau_0004": "rafau_0004"}),
    Case(records=cases([]), protocol="rafau/listed-only", dropped=DROPPED),
]
