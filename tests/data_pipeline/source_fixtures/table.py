"""Table: Windows paths, CRLF, codes through ``values``, empty cells, a row without a picture."""

from source_fixtures import Case, picture

NAME = "table"
ROOT = "faces.csv"

ROWS = (
    "file,who,part,mood,years,No_Beard,au12,yaw",
    "photos\\a.png,p1,train,3,31,1,2.5,-10",
    "photos\\b.png,p1,train,9,,-1,,",
    ",p2,train,3,20,1,0,0",
    "photos\\c.png,p2,Validation,4,40.5,,0,0",
)
COLUMNS = {
    "image": "file",
    "subject": "who",
    "split": "part",
    "expression": "mood",
    "age": "years",
    "attributes": ["No_Beard"],
    "action_units": ["au12"],
    "yaw": "yaw",
}
VALUES = {"expression": {3: "happiness", 4: "sadness", 9: None}, "attributes": {1: True, -1: False}}


def write(root):
    for name in "abc":
        picture(root / "photos" / f"{name}.png")
    (root / ROOT).write_text("\r\n".join(ROWS) + "\r\n", newline="")


CASES = [
    Case(
        {
            "faces_photos_a": (
                "train",
                {
                    "expression": "happiness",
                    "age": 31.0,
                    "attributes": {"beard": False},
                    "action_units": {"AU12": 2.5},
                    "head_pose": {"yaw": -10.0},
                },
            ),
            "faces_photos_b": ("train", {"attributes": {"beard": True}}),
            "faces_photos_c": (
                "val",
                {
                    "expression": "sadness",
                    "age": 40.5,
                    "action_units": {"AU12": 0.0},
                    "head_pose": {"yaw": 0.0},
                },
            ),
        },
        options={"columns": COLUMNS, "values": VALUES},
        dropped={"no image in the row": 1},
        subjects={"faces_photos_a": "faces_p1", "faces_photos_b": "faces_p1"},
    )
]
