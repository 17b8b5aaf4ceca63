"""CelebA in miniature: runs of spaces, a row without a split, boxes of the original photographs."""

from pathlib import Path

from data_pipeline.labels.attributes import CELEBA_ATTRIBUTES, canonical_attribute
from source_fixtures import Case, picture

NAME = "celeba"
PRESENT = {  # everything else is -1
    "000001.jpg": {"No_Beard", "Male", "Young"},
    "000002.jpg": {"Eyeglasses", "Smiling"},
    "000003.jpg": set(),
    "000004.jpg": {"Bald"},
}
PARTITION = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 2}
PERSON = {"000001.jpg": 2880, "000002.jpg": 2937, "000003.jpg": 8692}
BOX = {"000001.jpg": "  95  71 226 313", "000002.jpg": "  72  94 221 306", "000003.jpg": "0 0 0 0"}


def cells(present, space=" "):
    return space.join(
        " 1" if name in present and space == " " else "1" if name in present else "-1"
        for name in CELEBA_ATTRIBUTES
    )


def write(root: Path) -> None:
    for folder in ("Anno", "Eval"):
        (root / folder).mkdir(parents=True)
    rows = "".join(f"{file} {cells(present)}\r\n" for file, present in PRESENT.items())
    header = f"{len(PRESENT)}\r\n{' '.join(CELEBA_ATTRIBUTES)} \r\n"
    (root / "Anno/list_attr_celeba.txt").write_text(header + rows)
    people = "".join(f"{file} {person}\n" for file, person in PERSON.items())
    (root / "Anno/identity_CelebA.txt").write_text(people)
    boxes = "".join(f"{file} {box}\n" for file, box in BOX.items())
    header = f"{len(BOX)}\nimage_id x_1 y_1 width height\n"
    (root / "Anno/list_bbox_celeba.txt").write_text(header + boxes)
    parts = "".join(f"{file} {part}\n" for file, part in PARTITION.items())
    (root / "Eval/list_eval_partition.txt").write_text(parts)
    for file in PRESENT:
        picture(root / "Img/img_align_celeba" / file)
        picture(root / "Img/img_celeba" / file, (48, 64))


def labels(file):
    found = {}
    for raw in CELEBA_ATTRIBUTES:
        name, negated = canonical_attribute(raw)
        found[name] = (raw in PRESENT[file]) != negated
    return {"attributes": found, "gender": "male" if found["male"] else "female"}


RECORDS = {
    "celeba_000001": ("train", labels("000001.jpg")),
    "celeba_000002": ("val", labels("000002.jpg")),
    "celeba_000003": ("test", labels("000003.jpg")),
}
CASES = [
    Case(
        records=RECORDS,
        dropped={"no split in list_eval_partition": 1},
        subjects={"celeba_000001": "celeba_2880"},
        boxes={"celeba_000001": []},
    ),
    Case(
        options={"pictures": "original"},
        records={key: RECORDS[key] for key in ("celeba_000001", "celeba_000002")},
        dropped={"no split in list_eval_partition": 1, "no face box in list_bbox_celeba": 1},
        boxes={"celeba_000001": [95, 71, 321, 384]},
    ),
]
