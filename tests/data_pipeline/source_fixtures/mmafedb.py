"""MMAFEDB: lower-case class folders, the validation folder called valid."""

from source_fixtures import Case, picture

NAME = "mmafedb"

CLASSES = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
SPLITS = {"train": "train", "valid": "val", "test": "test"}


def write(root):
    for part in SPLITS:
        for name in CLASSES:
            picture(root / "MMAFEDB" / part / name / "1.jpg")
        (root / "MMAFEDB" / part / "angry" / ".DS_Store").write_bytes(b"")


CASES = [
    Case(
        {
            f"mmafedb_{split}_{name}_1": (split, {"expression": word})
            for split in SPLITS.values()
            for name, word in CLASSES.items()
        }
    )
]
