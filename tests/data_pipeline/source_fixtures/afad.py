"""AFAD in miniature: two pictures of one id in different ages, litter, a stray name."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "afad"
FACES = {"18/111/635-0": "male", "18/112/700-0": "female", "21/111/635-1": "male"}


def write(root: Path) -> None:
    for path in FACES:
        picture(root / "AFAD-Full" / f"{path}.jpg")
    (root / "AFAD-Full/18/111/Thumbs.db").write_bytes(b"")
    (root / "AFAD-Full/18/111/notes.txt").write_text("")
    picture(root / "AFAD-Full/18/111/cover.jpg")
    (root / "AFAD-Full/README.md").write_text("")


def row(path, gender):
    age, code, stem = path.split("/")
    key = f"afad_{age}_{code}_{stem}"
    return key, (hash_split(f"afad_{stem.split('-')[0]}"), {"age": int(age), "gender": gender})


CASES = [
    Case(
        records=dict(row(path, gender) for path, gender in FACES.items()),
        dropped={"not an image file": 1, "malformed name": 1},
        subjects={"afad_18_111_635-0": "afad_635", "afad_21_111_635-1": "afad_635"},
    )
]
