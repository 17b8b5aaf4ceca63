"""AffectNet 2021: labels stored as strings and as numbers, numbers with gaps."""

import numpy as np

from source_fixtures import Case, picture

NAME = "affectnet2021"

LABELS = {
    ("train_set", 2): np.str_("3"),
    ("train_set", 10): np.int64(7),
    ("train_set", 3): np.str_("0"),
    ("val_set", 2): np.str_("4"),
}


def write(root):
    for (part, number), label in LABELS.items():
        picture(root / part / "images" / f"{number}.jpg")
        notes = root / part / "annotations"
        notes.mkdir(exist_ok=True)
        np.save(notes / f"{number}_exp.npy", label)
        for name in ("val", "aro"):
            np.save(notes / f"{number}_{name}.npy", np.str_("-0.25"))
        np.save(notes / f"{number}_lnd.npy", np.zeros(136))
        (notes / ".DS_Store").write_bytes(b"")


TRAIN = {
    "affectnet2021_train_2": ("train", {"expression": "surprise"}),
    "affectnet2021_train_3": ("train", {"expression": "neutral"}),
}
CASES = [
    Case(
        TRAIN
        | {
            "affectnet2021_train_10": ("train", {"expression": "contempt"}),
            "affectnet2021_val_2": ("val", {"expression": "fear"}),
        }
    ),
    Case(
        TRAIN | {"affectnet2021_val_2": ("test", {"expression": "fear"})},
        protocol="affectnet2021/7class-val-as-test",
        dropped={"contempt left out by the protocol": 1},
    ),
]
