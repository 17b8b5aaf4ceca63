"""FairFace in miniature: an open band, a band turned into a date, both service_test words."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "fairface"
HEADER = "file,age,gender,race,service_test\n"
TRAIN = (
    "train/1.jpg,50-59,Male,East Asian,True\n"
    "train/2.jpg,9-Mar,Female,White,False\n"
    "train/3.jpg,more than 70,Female,Black,FALSE\n"
)
VAL = "val/1.jpg,0-2,Male,Latino_Hispanic,True\nval/2.jpg,19-Oct,Female,Indian,False\n"


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "fairface_label_train.csv").write_text(HEADER + TRAIN)
    (root / "fairface_label_val.csv").write_text(HEADER + VAL)
    for name in ("train/1", "train/2", "train/3", "val/1", "val/2"):
        picture(root / f"fairface-img-margin025-trainval/{name}.jpg")


LABELS = {
    "fairface_train_1": {"age_band": "50-59", "gender": "male"},
    "fairface_train_2": {"age_band": "3-9", "gender": "female"},
    "fairface_train_3": {"age_band": "70+", "gender": "female"},
    "fairface_val_1": {"age_band": "0-2", "gender": "male"},
    "fairface_val_2": {"age_band": "10-19", "gender": "female"},
}
OFFICIAL = {key: (key.split("_")[1], labels) for key, labels in LABELS.items()}
CASES = [
    Case(records=OFFICIAL, subjects={"fairface_val_1": "fairface_val_1"}),
    Case(
        protocol="fairface/val-as-test",
        records={
            key: ("test" if split == "val" else hash_split(key, "hash-90-10-0"), labels)
            for key, (split, labels) in OFFICIAL.items()
        },
    ),
    Case(
        protocol="fairface/service-test",
        options={"pictures": "margin125"},
        records={key: OFFICIAL[key] for key in ("fairface_train_1", "fairface_val_1")},
        dropped={"not in the service_test subset": 3},
    ),
]
