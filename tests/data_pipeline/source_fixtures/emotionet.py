"""EmotioNet: quotes and blanks inside header and cells, 999, flat and nested pictures."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.sources.base import hash_split
from source_fixtures import Case, picture

NAME = "emotionet"
WEB = "http://cbcsl.ece.ohio-state.edu/dbform_emotionet/N_0000000001"
UNITS = (1, 2, 12, 51)  # 51 is a head code, outside the facial registry


def row(picture_name: str, *codes: int) -> str:
    return ", ".join([f"'{WEB}/{picture_name}'", "'http://elsewhere/x.jpg'", *map(str, codes)])


def write(root: Path) -> None:
    header = ", ".join(["URL", "URL orig", *(f"\"'AU {unit}'\"" for unit in UNITS)])
    rows = [
        row("N_0000000001_00001.jpg", 1, 999, 0, 1),
        row("N_0000000002_00007.jpg", 0, 1, 1, 999),
        row("N_0000000001_00002.jpg", 999, 999, 999, 1),
        "'', '', 0, 0, 1, 0",
        "",
    ]
    path = root / "EmotioNet_FACS_aws_2020_24600.csv"
    path.write_text("\r\n".join([header, *rows]))
    picture(root / "imgs" / "N_0000000001" / "N_0000000001_00001.jpg")
    picture(root / "imgs" / "N_0000000002_00007.jpg")


FIRST, SECOND = "emotionet_N_0000000001_00001", "emotionet_N_0000000002_00007"

CASES = [
    Case(
        records={
            FIRST: (hash_split(FIRST), {"action_units": {"AU1": True, "AU12": False}}),
            SECOND: (
                hash_split(SECOND),
                {"action_units": {"AU1": False, "AU2": True, "AU12": True}},
            ),
        },
        dropped={"no unit is scored (999)": 1, "no address of a picture": 1},
        subjects={FIRST: FIRST},
    )
]
