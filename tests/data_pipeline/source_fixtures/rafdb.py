"""RAF-DB basic: misspelt list, names without ``_aligned``, CRLF, an unsure gender."""

from source_fixtures import Case, picture

NAME = "rafdb"

LANDMARKS = "".join(f"{10 + i}.5\t{20 + i}.25\n" for i in range(5))
LIST = "train_00001.jpg 5\r\ntrain_00002.jpg 1\r\ntrain_00003.jpg 3\r\ntest_0001.jpg 7\r\n\r\n"


def write(root):
    base = root / "basic"
    for name in ("train_00001", "train_00002", "test_0001"):
        picture(base / "Image" / "aligned" / f"{name}_aligned.jpg")
        picture(base / "Image" / "original" / f"{name}.jpg")
    (base / "EmoLabel").mkdir()
    (base / "EmoLabel" / "list_patition_label.txt").write_text(LIST, newline="")
    manual = base / "Annotation" / "manual"
    manual.mkdir(parents=True)
    (manual / "train_00001_manu_attri.txt").write_text(f"{LANDMARKS}1\n2\n1\n")
    (manual / "test_0001_manu_attri.txt").write_text(f"{LANDMARKS}2\n0\n4\n")


def _race(word):
    return {name: name == word for name in ("white", "black", "asian")}


PLAIN = {
    "rafdb_train_00001": ("train", {"expression": "sadness"}),
    "rafdb_train_00002": ("train", {"expression": "surprise"}),
    "rafdb_train_00003": ("train", {"expression": "disgust"}),  # its picture is missing: build says
    "rafdb_test_0001": ("test", {"expression": "neutral"}),
}
MANUAL = {
    "rafdb_train_00001": {"gender": "female", "age_band": "4-19", "attributes": _race("asian")},
    "rafdb_test_0001": {"age_band": "70+", "attributes": _race("white")},
}
CASES = [
    Case(
        {key: (split, labels | MANUAL.get(key, {})) for key, (split, labels) in PLAIN.items()},
        protocol="rafdb/official",
        subjects={"rafdb_test_0001": "rafdb_test_0001"},
    ),
    Case(PLAIN, options={"manual": False, "image": "original"}),
]
