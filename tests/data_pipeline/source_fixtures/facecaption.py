"""FaceCaption-15M in miniature: two captions a row, a box, pictures by img2dataset."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "facecaption"
FACTS = {
    "laion_caption": "buy now",
    "face_caption": "She  has wavy hair.",
    "url": "https://e.org/1",
}
SIZE = {"width": 24, "height": 24, "original_width": 48, "original_height": 48}


def write(root: Path) -> None:
    rows = {"url": ["https://e.org/1"], "face_box": [[2, 4, 20, 22]], "face_caption": ["She."]}
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows), root / "FaceCaption-v1.parquet")
    for number, box in enumerate(("[4, 8, 40, 44]", [4, 8, 2, 44])):
        facts = {**FACTS, **SIZE, "face_box": box}
        picture(root / f"00000/{number:09d}.jpg")
        (root / f"00000/{number:09d}.json").write_text(json.dumps(facts))


def row(number, rule="hash-98-1-1"):
    key = f"facecaption_{number:09d}"
    return key, (hash_split(key, rule), {})


CASES = [
    Case(records=dict([row(0), row(1)]), boxes={"facecaption_000000000": []}),
    Case(
        options={"box": "xyxy"},
        records=dict([row(0)]),
        dropped={"box does not fit the picture": 1},
        boxes={"facecaption_000000000": [2, 4, 20, 22]},
    ),
    Case(
        options={"box": "xywh"},
        records=dict([row(0), row(1)]),
        boxes={"facecaption_000000001": [2, 4, 3, 26]},
    ),
]
