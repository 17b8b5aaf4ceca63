"""Folder per class: words in other spellings, litter, a class left out, no split folders."""

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "folder"
ROOT = "mine"
PLACES = ("Happy/a.jpg", "happy people/b.PNG", "angry/deep/c.jpg", "undecided/d.jpg")


def write(root):
    for place in PLACES:
        picture(root / ROOT / place)
    (root / ROOT / "angry" / "Thumbs.db").write_bytes(b"")
    (root / ROOT / "angry" / "notes.txt").write_text("who is angry?")
    (root / ROOT / "__MACOSX").mkdir()


def _face(key, word):
    return key, (hash_split(key), {"expression": word})


CASES = [
    Case(
        dict(
            [
                _face("mine_Happy_a", "happiness"),
                _face("mine_happy people_b", "happiness"),
                _face("mine_angry_deep_c", "anger"),
            ]
        ),
        options={"values": {"happy people": "happy", "undecided": None}},
        dropped={"not an image file": 1, "class 'undecided' left out by values": 1},
        subjects={"mine_Happy_a": "mine_Happy_a"},
    )
]
