"""ExpW: box order top, left, right, bottom; two faces in a photograph; a box without area."""

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "expw"

LIST = """angry_actor_104.jpg 0 28 113 226 141 22.9362 0
angry_actor_104.jpg 1 10 20 30 50 4.5 6
happy man_7.jpg 0 1 2 30 40 60.1 3
sad_1.jpg 0 9 9 9 9 1.0 4
angry_actor_104.jpg 1 10 20 30 50 4.5 6
"""


def write(root):
    for name in ("angry_actor_104.jpg", "happy man_7.jpg"):
        picture(root / "image" / "origin" / name, (240, 160))
    (root / "label").mkdir()
    (root / "label" / "label.lst").write_text(LIST)


def _split(photo):
    return hash_split(f"expw_{photo}")


CASES = [
    Case(
        {
            "expw_angry_actor_104_0": (_split("angry_actor_104"), {"expression": "anger"}),
            "expw_angry_actor_104_1": (_split("angry_actor_104"), {"expression": "neutral"}),
            "expw_happy man_7_0": (_split("happy man_7"), {"expression": "happiness"}),
        },
        dropped={"empty face box": 1, "listed twice": 1},
        subjects={
            "expw_angry_actor_104_0": "expw_angry_actor_104",
            "expw_angry_actor_104_1": "expw_angry_actor_104",
        },
        boxes={
            "expw_angry_actor_104_0": [113, 28, 226, 141],
            "expw_angry_actor_104_1": [20, 10, 30, 50],
        },
    )
]
