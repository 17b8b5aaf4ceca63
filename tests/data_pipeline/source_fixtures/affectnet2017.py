"""AffectNet 2017: codes 8-10, faces without a box, a suffix in the wrong case, a lost header."""

from source_fixtures import Case, picture

NAME = "affectnet2017"

HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,"
    "valence,arousal"
)
MARKS = ";".join(["1.5;2.5"] * 68)
TRAIN = [
    ("1/aa.jpg", "10,20,30,40", "1,0.5,0.25"),
    ("1/bb.JPG", "0,0,24,24", "7,-0.5,0.5"),
    ("2/cc.png", "0,0,24,24", "10,-2,-2"),
    ("2/dd.jpg", "0,0,24,24", "8,-2,-2"),
    ("2/ee.jpg", "5,5,0,0", "4,0.1,0.1"),
    ("2/ff.jpg", "NULL,NULL,NULL,NULL", "4,0.1,0.1"),
    ("1/aa.jpg", "10,20,30,40", "1,0.5,0.25"),
]
VAL = [("3/gg.jpg", "1,2,20,20", "0,0,0"), ("3/hh.jpg", "1,2,20,20", "9,-2,-2")]


def lines(rows):
    return [f"{path},{box},{MARKS},{rest}" for path, box, rest in rows]


def write(root):
    images = root / "Manually_Annotated" / "Manually_Annotated_Images"
    for name in ("1/aa.jpg", "1/bb.jpg", "2/cc.png", "2/dd.jpg", "3/gg.jpg"):
        picture(images / name, (48, 64))
    lists = root / "Manually_Annotated_file_lists"
    lists.mkdir()
    (lists / "training.csv").write_text("\r\n".join([HEADER, *lines(TRAIN)]), newline="")
    (lists / "validation.csv").write_text("\n".join(lines(VAL)) + "\n")


HAPPY = {"affectnet2017_aa": ("train", {"expression": "happiness"})}
CONTEMPT = {"affectnet2017_bb": ("train", {"expression": "contempt"})}
DROPPED = {
    "code 8 is no expression": 1,
    "code 9 is no expression": 1,
    "code 10 is no expression": 1,
    "no face box": 2,
    "listed twice": 1,
}
CASES = [
    Case(
        HAPPY | CONTEMPT | {"affectnet2017_gg": ("val", {"expression": "neutral"})},
        dropped=DROPPED,
        boxes={"affectnet2017_aa": [10, 20, 40, 60]},
    ),
    Case(
        HAPPY | {"affectnet2017_gg": ("test", {"expression": "neutral"})},
        protocol="affectnet2017/7class-val-as-test",
        dropped=DROPPED | {"contempt left out by the protocol": 1},
    ),
]
