"""MAAD-Face in miniature: undefined zeros, two columns on eyewear, an identity without pictures."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "maadface"
CSV = """Filename,Identity,Male,Young,No_Beard,Mouth_Closed,No_Eyewear,Eyeglasses,Senior
n000002/0001_01.jpg,n000002,-1,1,1,-1,1,-1,-1
n000002/0002_01.jpg,n000002,0,0,0,0,-1,-1,0
n000003/0001_01.jpg,n000003,1,0,-1,1,0,1,1
n000004/0001_01.jpg,n000004,0,0,0,0,0,0,0
"""
LABELS = {
    "n000002_0001_01": {
        "attributes": {
            "male": False,
            "young": True,
            "beard": False,
            "mouth_open": True,
            "eyeglasses": False,
            "elderly": False,
        },
        "gender": "female",
    },
    "n000002_0002_01": {},  # eyewear, but no eyeglasses: contradiction is unknown
    "n000003_0001_01": {
        "attributes": {
            "male": True,
            "beard": True,
            "mouth_open": False,
            "eyeglasses": True,
            "elderly": True,
        },
        "gender": "male",
    },
    "n000004_0001_01": {},
}


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "MAAD_Face.csv").write_text(CSV)
    for path in ("train/n000002/0001_01", "train/n000002/0002_01", "test/n000003/0001_01"):
        picture(root / f"{path}.jpg")


SPLITS = {"n000002": "train", "n000003": "test"}
CASES = [
    Case(
        records={
            f"maadface_{key}": (hash_split(f"maadface_{key[:7]}", "hash-90-5-5"), labels)
            for key, labels in LABELS.items()
        },
        subjects={"maadface_n000002_0002_01": "maadface_n000002"},
    ),
    Case(
        protocol="maadface/vggface2",
        records={
            f"maadface_{key}": (SPLITS[key[:7]], labels)
            for key, labels in LABELS.items()
            if key[:7] in SPLITS
        },
        dropped={"identity in neither train nor test folder": 1},
    ),
]
