"""CelebA-Dialog in miniature: beards under No_Beard, ages under Young, an unlabelled face."""

import json
from pathlib import Path

from source_fixtures import Case, picture

NAME = "celeba_dialog"
LISTS = {
    "train": "000001.jpg 0 0 5 1 3\n000002.jpg 5  4 0 0 0\n",
    "val": "000003.jpg 1 2 1 3 5\n",
    "test": "000004.jpg -1 -1 -1 -1 -1\n000005.jpg -1 -1 -1 -1 -1\n",
}
CAPTIONS = {
    "000001.jpg": {
        "attribute_wise_captions": {"Bangs": "None.", "No_Beard": None},
        "overall_caption": "This man has  a bushy beard.",
    },
    "000004.jpg": {"attribute_wise_captions": {}, "overall_caption": "A face."},
}


def write(root: Path) -> None:
    (root / "celeba_caption").mkdir(parents=True)
    (root / "celeba_caption/captions.json").write_text(json.dumps(CAPTIONS))
    for split, rows in LISTS.items():
        (root / f"{split}_attr_list.txt").write_text(rows)
    for number in range(1, 6):
        picture(root / f"img_align_celeba/{number:06d}.jpg")


def face(bangs, beard, smiling, glasses, band):
    flags = {"bangs": bangs, "beard": beard, "smiling": smiling, "sunglasses": glasses is None}
    if glasses is not None:
        flags["eyeglasses"] = glasses
    return {"attributes": flags, "age_band": band}


CASES = [
    Case(
        records={
            "celeba_dialog_000001": ("train", face(False, True, True, False, "40-49")),
            "celeba_dialog_000002": ("train", face(True, False, False, None, "0-14")),
            "celeba_dialog_000003": ("val", face(True, True, True, True, "60+")),
            "celeba_dialog_000004": ("test", {}),
        },
        dropped={"unlabelled": 1},
    ),
    Case(
        protocol="celeba_dialog/degrees-ge2",
        records={
            "celeba_dialog_000001": ("train", face(False, True, False, False, "40-49")),
            "celeba_dialog_000002": ("train", face(True, False, False, None, "0-14")),
            "celeba_dialog_000003": ("val", face(False, False, True, True, "60+")),
            "celeba_dialog_000004": ("test", {}),
        },
        dropped={"unlabelled": 1},
    ),
]
