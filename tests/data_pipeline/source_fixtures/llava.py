"""LLaVA JSON in miniature: a repeated id, text only, a link, several turns, a last open turn."""

import json
from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "llava"


def turns(*texts):
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


ROWS = [
    {
        "id": "000000033471",
        "image": "faces/a.jpg",
        "conversations": turns("<image>\nWho?", "A man.", "Is he smiling?", "Yes.", "And now?"),
    },
    {
        "id": "000000033471",
        "image": "faces\\a.jpg",
        "conversations": turns("Describe it.\n<image>", "A face."),
    },
    {"id": 7, "image": "faces/b.jpg", "conversations": turns("<image>", "Nothing was asked.")},
    {"id": "text", "conversations": turns("Hello?", "Hello.")},
    {"id": "far", "image": "https://example.org/a.jpg", "conversations": turns("Who?", "I.")},
    {"image": "faces/b.jpg", "conversations": turns("What?", "A face, [see] {there}, too.")},
]


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "chat.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig")
    for name in "ab":
        picture(root / f"faces/{name}.jpg")


CASES = [
    Case(
        records={
            "chat_000000033471": (hash_split("chat_faces/a.jpg"), {}),
            "chat_000000033471-2": (hash_split("chat_faces/a.jpg"), {}),
            "chat_b": (hash_split("chat_faces/b.jpg"), {}),
        },
        dropped={
            "no question with an answer": 1,
            "no picture": 1,
            "the picture is a link": 1,
        },
        subjects={"chat_000000033471-2": "chat_faces/a.jpg"},
    ),
    Case(
        options={"split": "train", "name": "mine"},
        records={
            key: ("train", {}) for key in ("mine_000000033471", "mine_000000033471-2", "mine_b")
        },
        dropped={"no question with an answer": 1, "no picture": 1, "the picture is a link": 1},
    ),
]
