"""FER2013: pixels in the csv, one row per Usage, every code."""

from source_fixtures import Case

NAME = "fer2013"

WORDS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
SPLITS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
ROWS = [(code, list(SPLITS)[code % 3]) for code in range(7)]
EXPECTED = [(SPLITS[usage], {"expression": WORDS[code]}) for code, usage in ROWS]


def pixels(seed):
    return [(place * 7 + place // 48 + seed * 31) % 256 for place in range(48 * 48)]


def line(seed):
    return " ".join(map(str, pixels(seed)))


def write(root):
    lines = [f"{code},{line(row)},{usage}" for row, (code, usage) in enumerate(ROWS)]
    text = "\r\n".join(["emotion,pixels,Usage", *lines]) + "\r\n"
    (root / "fer2013.csv").write_text(text, newline="")


CASES = [Case({f"fer2013_{row:05d}": found for row, found in enumerate(EXPECTED)})]
