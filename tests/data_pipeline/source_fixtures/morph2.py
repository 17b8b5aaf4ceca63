"""MORPH-II in miniature: a person with two genders, a photo without its folder."""

from pathlib import Path

from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "morph2"
HEADER = "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo\n"
ROWS = (
    "009055,0,01/01/1950,01/01/2004,B,M,NULL,54,,0,Album2/009055_0M54.JPG\n"
    "009055,1,01/01/1950,01/01/2005,B,M,NULL,55,365,0,Album2\\009055_1M55.JPG\n"
    "012345,0,01/01/1980,01/01/2004,W,F,NULL,24,,0,012345_0F24.JPG\n"
    "012345,1,01/01/1980,01/01/2005,W,M,NULL,25,366,0,Album2/012345_1M25.JPG\n"
)
LABELS = {
    "009055_0M54": {"age": 54, "gender": "male"},
    "009055_1M55": {"age": 55, "gender": "male"},
    "012345_0F24": {"age": 24},
    "012345_1M25": {"age": 25},
}


def write(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "morph_2008_nonCommercial.csv").write_text(HEADER + ROWS)
    for stem in LABELS:
        picture(root / f"Album2/{stem}.JPG")


CASES = [
    Case(
        protocol=f"morph2/subject-{rule}",
        records={
            f"morph2_{stem}": (hash_split(f"morph2_{stem[:6]}", f"hash-{rule}"), labels)
            for stem, labels in LABELS.items()
        },
        subjects={"morph2_009055_1M55": "morph2_009055"},
    )
    for rule in ("80-10-10", "80-0-20")
]
