"""RAF-DB compound, beside a basic folder that is not to be read."""

from source_fixtures import Case, picture

NAME = "rafdb_compound"

LISTS = {
    "basic": "train_00001.jpg 5\n",
    "compound": "train_0001.jpg 1\ntest_0001.jpg 11\n",
}


def write(root):
    for part, text in LISTS.items():
        (root / part / "EmoLabel").mkdir(parents=True)
        (root / part / "EmoLabel" / "list_patition_label.txt").write_text(text)
    for name in ("train_0001", "test_0001"):
        picture(root / "compound" / "Image" / "aligned" / f"{name}_aligned.jpg")


CASES = [
    Case(
        {
            "rafdb_compound_train_0001": ("train", {"compound_expression": "happily surprised"}),
            "rafdb_compound_test_0001": ("test", {"compound_expression": "disgustedly surprised"}),
        }
    )
]
