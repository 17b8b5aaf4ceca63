"""OpenAI-style messages in miniature: a picture inside a part, beside the parts, and a path."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from source_fixtures import Case, picture

NAME = "messages"


def data_uri():
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def talk(picture_part, question="Who?", answer="A man."):
    return [
        {"role": "user", "content": [picture_part, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


ROWS = [
    {"messages": talk({"type": "image_url", "image_url": {"url": data_uri()}})},
    {"messages": talk({"type": "image"}), "images": [{"path": "a.jpg", "bytes": None}]},
    {"messages": talk({"type": "image", "image": "b.jpg"}), "id": "third"},
    {"messages": [{"role": "user", "content": "Hello?"}, {"role": "tool", "content": None}]},
]


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "chat.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    for name in "ab":
        picture(root / f"{name}.jpg")


CASES = [
    Case(
        options={"split": "train"},
        records={key: ("train", {}) for key in ("chat_00000001", "chat_a", "chat_third")},
        dropped={"no picture": 1},
        subjects={"chat_00000001": "chat_00000001", "chat_third": "chat_b.jpg"},
    )
]
