"""VGGFace2 in miniature: a quoted name with a comma, spaces and a last comma; boxes for train."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "vggface2"
META = """Class_ID, Name, Sample_Num, Flag, Gender
n000002, "Ac_Rank,_Jr.", 2, 1, f,
n000003, "A_Name", 1, 1, m,
n000001, "T_Name", 1, 0, m,
"""
FILES = ("train/n000002/0001_01", "train/n000002/0002_01", "train/n000003/0001_01")
TEST = "test/n000001/0001_01"


def write(root: Path) -> None:
    for path in (*FILES, TEST):
        picture(root / f"{path}.jpg")
    (root / "meta").mkdir()
    (root / "meta/identity_meta.csv").write_text(META)
    (root / "bb_landmark").mkdir()
    rows = "".join(f'"{path.removeprefix("train/")}",2,3,10,12\n' for path in FILES)
    (root / "bb_landmark/loose_bb_train.csv").write_text(f"NAME_ID,X,Y,W,H\n{rows}")
    (root / "test_list.txt").write_text("n000001/0001_01.jpg\r\n")


RECORDS = {
    "vggface2_n000002_0001_01": ("train", {"gender": "female"}),
    "vggface2_n000002_0002_01": ("train", {"gender": "female"}),
    "vggface2_n000003_0001_01": ("train", {"gender": "male"}),
    "vggface2_n000001_0001_01": ("test", {"gender": "male"}),
}
CASES = [
    Case(
        records=RECORDS,
        subjects={"vggface2_n000002_0002_01": "vggface2_n000002"},
        boxes={"vggface2_n000002_0001_01": [2, 3, 12, 15], "vggface2_n000001_0001_01": []},
    ),
    Case(
        protocol="vggface2/official-val5",
        records={
            key: (split if split == "test" else hash_split(key[:16], "hash-95-5-0"), labels)
            for key, (split, labels) in RECORDS.items()
        },
    ),
]
