"""CAER-S: the folder is Anger, not Angry; picture names repeat from class to class."""

from source_fixtures import Case, picture

NAME = "caers"

CLASSES = {
    "Anger": "anger",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happiness",
    "Neutral": "neutral",
    "Sad": "sadness",
    "Surprise": "surprise",
}


def write(root):
    for part in ("train", "test"):
        for name in CLASSES:
            picture(root / "CAER-S" / part / name / "0001.png", (96, 54))


CASES = [
    Case(
        {
            f"caers_{part}_{name}_0001": (part, {"expression": word})
            for part in ("train", "test")
            for name, word in CLASSES.items()
        }
    )
]
