"""FER+: joined by row, a row without a name, names that are no row numbers, one name twice."""

from source_fixtures import Case
from source_fixtures.fer2013 import line

NAME = "ferplus"

HEADER = (
    "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
)
ROWS = [
    ("Training", "fer0000000.png", (4, 0, 0, 1, 3, 2, 0, 0, 0, 0)),  # no majority
    ("Training", "", (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)),
    ("Training", "fer0000001.png", (0, 9, 1, 0, 0, 0, 0, 0, 0, 0)),
    ("Training", "fer0000001.png", (0, 0, 0, 0, 0, 0, 0, 6, 3, 0)),  # sums to 9
    ("PublicTest", "fer0000002.png", (0, 0, 2, 0, 0, 0, 0, 0, 8, 0)),  # unknown leads
    ("PublicTest", "fer0000003.png", (0, 0, 5, 0, 0, 0, 5, 0, 0, 0)),  # a tie
    ("PrivateTest", "fer0000004.png", (2, 0, 0, 8, 0, 0, 0, 0, 0, 0)),
]


def write(root):
    votes = [f"{usage},{name},{','.join(map(str, given))}" for usage, name, given in ROWS]
    (root / "fer2013new.csv").write_text("\n".join([HEADER, *votes]) + "\n")
    faces = [f"0,{line(row)},{usage}" for row, (usage, _, _) in enumerate(ROWS)]
    (root / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *faces]) + "\n")


NO_FACE = {"no image name: not a face": 1}
SURE = {
    "ferplus_fer0000001": ("train", {"expression": "happiness"}),
    "ferplus_fer0000001_again": ("train", {"expression": "contempt"}),
    "ferplus_fer0000004": ("test", {"expression": "sadness"}),
}
CASES = [
    Case(SURE, dropped=NO_FACE | {"no expression by the votes": 3}),
    Case(
        SURE
        | {
            "ferplus_fer0000000": ("train", {"expression": "neutral"}),
            "ferplus_fer0000002": ("val", {"expression": "surprise"}),
            "ferplus_fer0000003": ("val", {"expression": "surprise"}),
        },
        protocol="ferplus/argmax8",
        dropped=NO_FACE,
    ),
    Case(
        {
            "ferplus_fer0000000": (
                "train",
                {
                    "expression": "neutral",
                    "expression_votes": {"neutral": 4 / 7, "anger": 3 / 7},
                },
            ),
            "ferplus_fer0000001": (
                "train",
                {"expression": "happiness", "expression_votes": {"happiness": 1.0}},
            ),
            "ferplus_fer0000001_again": (
                "train",
                {"expression": "contempt", "expression_votes": {"contempt": 1.0}},
            ),
            "ferplus_fer0000003": ("val", {"expression_votes": {"surprise": 0.5, "fear": 0.5}}),
            "ferplus_fer0000004": (
                "test",
                {"expression": "sadness", "expression_votes": {"sadness": 1.0}},
            ),
        },
        protocol="ferplus/soft",
        dropped=NO_FACE | {"no expression by the votes": 1},
    ),
]
