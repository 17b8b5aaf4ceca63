"""UTKFace in miniature: the three aligned names without a field, and photographs beside them."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "utkface"
GOOD = {
    "26_0_1_20170116184028385": {"age": 26, "gender": "male"},
    "1_1_0_20170109190546562": {"age": 1, "gender": "female"},
    "116_1_4_20170120134921760": {"age": 116, "gender": "female"},
}
MALFORMED = ("39_1_20170116174525125", "61_1_20170109142408075", "61_1_20170109150557335")


def write(root: Path) -> None:
    for stem in (*GOOD, *MALFORMED):
        picture(root / "UTKFace" / f"{stem}.jpg.chip.jpg")
    for stem in GOOD:
        picture(root / "part1" / f"{stem}.jpg")
    (root / "UTKFace/Thumbs.db").write_bytes(b"")


def split(stem, rule):
    return hash_split(f"utkface_{stem}", rule)


CASES = [
    Case(
        records={
            f"utkface_{stem}": (split(stem, "hash-80-10-10"), labels)
            for stem, labels in GOOD.items()
        },
        dropped={"malformed name": 3},
    ),
    Case(
        protocol="utkface/ages21-60-hash-80-0-20",
        records={
            "utkface_26_0_1_20170116184028385": (
                split("26_0_1_20170116184028385", "hash-80-0-20"),
                {"age": 26, "gender": "male"},
            )
        },
        dropped={"malformed name": 3, "age outside 21-60": 2},
    ),
]
