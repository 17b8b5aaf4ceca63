"""SFEW 2.0: aligned faces in class folders, Thumbs.db, a test set without labels."""

from source_fixtures import Case, picture

NAME = "sfew"

CLASSES = {
    "Angry": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happiness",
    "Neutral": "neutral",
    "Sad": "sadness",
    "Surprise": "surprise",
}
FRAME = "21_012215600_00000004"


def write(root):
    for folder in CLASSES:
        picture(root / "Val" / "Val_Aligned_Faces" / folder / f"{FRAME}.png")
    picture(root / "Train" / "Train_Aligned_Faces" / "Happy" / "1_1.png")
    (root / "Train" / "Train_Aligned_Faces" / "Happy" / "Thumbs.db").write_bytes(b"")
    (root / "Train" / "Train_Aligned_Faces" / "Happy" / "points.mat").write_bytes(b"")
    picture(root / "Test" / "Test_Aligned_Faces" / "x.png")


def _found(val):
    faces = {
        f"sfew_{val}_{name}_{FRAME}": (val, {"expression": word}) for name, word in CLASSES.items()
    }
    return faces | {"sfew_train_Happy_1_1": ("train", {"expression": "happiness"})}


CASES = [
    Case(_found("val"), dropped={"not an image file": 1}),
    Case(_found("test"), protocol="sfew/val-as-test", dropped={"not an image file": 1}),
]
