"""CK+: scientific notation, intensity 0, a sequence without expression, empty folders."""

from data_pipeline.protocols import protocols
from data_pipeline.sources import hash_split
from source_fixtures import Case, picture

NAME = "ckplus"

FACS = {
    "S005_001_00000011": "   9.0000000e+00   0.0000000e+00\n   1.2000000e+01   1.0000000e+00\n"
    "   1.7000000e+01   4.0000000e+00\n   5.4000000e+01   3.0000000e+00\n",
    "S005_002_00000015": "   4.0000000e+00   5.0000000e+00\n",
    "S130_013_00000018": "   2.5000000e+01   0.0000000e+00\n",
}
EMOTION = {"S005_001_00000011": "   3.0000000e+00\n", "S130_013_00000018": "   7.0000000e+00\n"}


def write(root):
    for stem, text in FACS.items():
        person, sequence, _ = stem.split("_")
        for frame in (f"{person}_{sequence}_00000001", stem):
            picture(root / "cohn-kanade-images" / person / sequence / f"{frame}.png")
        place = root / "FACS" / person / sequence
        place.mkdir(parents=True)
        (place / f"{stem}_facs.txt").write_text(text)
        (root / "Emotion" / person / sequence).mkdir(parents=True)
    for stem, text in EMOTION.items():
        person, sequence, _ = stem.split("_")
        (root / "Emotion" / person / sequence / f"{stem}_emotion.txt").write_text(text)
    (root / "FACS" / ".DS_Store").write_bytes(b"")


UNITS = protocols("ckplus")["ckplus/uncoded-present"].settings["action_units"]


def _units(**active):
    return {"action_units": {f"AU{unit}": False for unit in UNITS} | active}


def _found(first, second, third):
    a, b = hash_split("ckplus_S005"), hash_split("ckplus_S130")
    return {
        "ckplus_S005_001_00000011": (a, {"expression": "disgust"} | _units(**first)),
        "ckplus_S005_002_00000015": (a, _units(**second)),
        "ckplus_S130_013_00000018": (b, {"expression": "surprise"} | _units(**third)),
    }


CASES = [
    Case(
        _found({"AU9": True, "AU12": 1.0, "AU17": 4.0}, {"AU4": 5.0}, {"AU25": True}),
        subjects={
            "ckplus_S005_001_00000011": "ckplus_S005",
            "ckplus_S005_002_00000015": "ckplus_S005",
        },
    ),
    Case(_found({"AU17": 4.0}, {"AU4": 5.0}, {}), protocol="ckplus/uncoded-absent"),
]
