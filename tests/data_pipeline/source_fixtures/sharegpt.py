"""ShareGPT lines in miniature: a system turn, ``images`` as a list, two pictures in one row."""

import json
from pathlib import Path

from source_fixtures import Case, picture

NAME = "sharegpt"
ROWS = [
    {
        "id": "one",
        "images": ["a.jpg"],
        "conversations": [
            {"from": "system", "value": "Be short."},
            {"from": "user", "value": "<image>Who is it?"},
            {"from": "assistant", "value": "A man."},
        ],
    },
    {
        "images": ["a.jpg", "b.jpg"],
        "conversations": [
            {"from": "human", "value": "<image><image>Which is older?"},
            {"from": "gpt", "value": "The first."},
        ],
    },
]


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    lines = "\r\n".join(json.dumps(row) for row in ROWS)
    (root / "chat.jsonl").write_text(f"{lines}\r\n\r\n")
    picture(root / "pictures/a.jpg")


CASES = [
    Case(
        options={"split": "val"},
        records={"chat_one": ("val", {})},
        dropped={"more than one picture": 1},
        subjects={"chat_one": "chat_a.jpg"},
    )
]
