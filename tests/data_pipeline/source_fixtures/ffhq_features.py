"""FFHQ-Features in miniature: an empty list, scores, glasses of three kinds."""

import json
from pathlib import Path

from source_fixtures import Case, picture

NAME = "ffhq_features"
EMOTIONS = dict.fromkeys(
    ["anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"],
    0.0,
)
FULL = {
    "smile": 0.9,
    "headPose": {"pitch": -1.5, "roll": 3.0, "yaw": 12.5},
    "gender": "female",
    "age": 23.0,
    "facialHair": {"moustache": 0.0, "beard": 0.1, "sideburns": 0.0},
    "glasses": "ReadingGlasses",
    "emotion": {**EMOTIONS, "happiness": 0.7, "neutral": 0.3},
    "makeup": {"eyeMakeup": True, "lipMakeup": True},
    "accessories": [{"type": "headwear", "confidence": 0.9}],
    "occlusion": {"foreheadOccluded": True, "eyeOccluded": False},
    "hair": {
        "bald": 0.05,
        "invisible": False,
        "hairColor": [
            {"color": "brown", "confidence": 1.0},
            {"color": "black", "confidence": 0.6},
            {"color": "other", "confidence": 0.2},
            {"color": "red", "confidence": 0.1},
        ],
    },
}
SPARSE = {"gender": "male", "age": 71, "glasses": "Sunglasses", "emotion": EMOTIONS}
GOGGLES = {"glasses": "SwimmingGoggles", "hair": {"bald": 0.9, "invisible": True, "hairColor": []}}


def write(root: Path) -> None:
    faces = {"00000": [FULL], "00001": [], "00002": [SPARSE, FULL], "60000": [GOGGLES]}
    (root / "json").mkdir(parents=True)
    for stem, attributes in faces.items():
        rows = [{"faceId": "x", "faceAttributes": face} for face in attributes]
        (root / f"json/{stem}.json").write_text(json.dumps(rows))
        picture(root / f"images1024x1024/{stem[:2]}000/{stem}.png")


CASES = [
    Case(
        records={
            "ffhq_features_00000": (
                "train",
                {
                    "age": 23.0,
                    "gender": "female",
                    "head_pose": {"yaw": 12.5, "pitch": -1.5, "roll": 3.0},
                    "expression": "happiness",
                    "attributes": {
                        "smiling": True,
                        "beard": False,
                        "mustache": False,
                        "sideburns": False,
                        "bald": False,
                        "black_hair": True,
                        "brown_hair": True,
                        "red_hair": False,
                        "eyeglasses": True,
                        "sunglasses": False,
                        "wearing_lipstick": True,
                        "wearing_hat": True,
                        "obstructed_forehead": True,
                    },
                },
            ),
            "ffhq_features_00002": (
                "train",
                {"age": 71, "gender": "male", "attributes": {"sunglasses": True}},
            ),
            "ffhq_features_60000": ("val", {}),
        },
        dropped={"no face found by the machine": 1},
    )
]
