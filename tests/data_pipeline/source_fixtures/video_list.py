"""Frame lists: folders of another machine, frames without padding, MAFW's rare classes."""

from source_fixtures import Case, picture

NAME = "video_list"

ELSEWHERE = "/data/them/DFEW/frames"
TRAIN = f"{ELSEWHERE}/00001 12 1\n{ELSEWHERE}/00002 3 8\n{ELSEWHERE}/00003 5 6\n"
TEST = f"{ELSEWHERE}/Happy/00004 1 0\n{ELSEWHERE}/00009 7 2\n"


def write(root):
    (root / "DFEW_set_1_train.txt").write_text(TRAIN)
    (root / "DFEW_set_1_test.txt").write_text(TEST)
    for clip, count in (("00001", 12), ("00002", 3), ("00003", 4), ("Happy/00004", 1)):
        for frame in range(1, count + 1):
            picture(root / "frames" / clip / f"{frame}.jpg")


OPTIONS = {"prefix": ELSEWHERE, "clips": "frames", "name": "dfew"}
DROPPED = {
    "fewer frames than listed": 1,
    "no frames in the clip's folder": 1,
}
SAD = ("train", {"expression": "sadness"})
ANXIOUS = ("train", {"expression": "anxiety"})
HAPPY = {"dfew_Happy_00004_1": ("test", {"expression": "happiness"})}
CASES = [
    Case(
        {"dfew_00001_7": SAD, "dfew_00002_2": ANXIOUS} | HAPPY,
        options=OPTIONS,
        dropped=DROPPED,
        subjects={"dfew_00001_7": "dfew_00001", "dfew_Happy_00004_1": "dfew_Happy_00004"},
    ),
    Case(
        {f"dfew_00001_{frame}": SAD for frame in (3, 7, 11)}
        | {f"dfew_00002_{frame}": ANXIOUS for frame in (1, 2, 3)}
        | HAPPY,
        options=OPTIONS | {"frames": 3, "lists": "DFEW_set_1_*.txt"},
        dropped=DROPPED,
    ),
    Case(
        {"dfew_00001_12": SAD, "dfew_00002_3": ANXIOUS} | HAPPY,
        options=OPTIONS | {"frames": "last"},
        dropped=DROPPED,
    ),
]
