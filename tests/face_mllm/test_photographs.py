"""A photograph met later is cut as the training faces were."""

import csv
import io
import json

import pytest
from PIL import Image

from data_pipeline.faces import NO_FACES, Face, FacePolicy
from data_pipeline.faces import crop as crop_module
from face_mllm.artifact import STAGE_FILE
from face_mllm.chat import FaceMLLM
from face_mllm.compose import Bases
from face_mllm.describe import describe_images
from face_mllm.errors import UserError
from face_mllm.photographs import open_faces, policy_for
from face_mllm.terminal_chat import converse

POLICY = FacePolicy(size=64, margin=0.0)
BASES = Bases(vision="v", llm="l")


def two_faces(image):
    """Two faces in a wide picture, none in a square one."""
    marks = ((10.0, 10.0), (20.0, 10.0), (15.0, 15.0), (11.0, 20.0), (19.0, 20.0))
    small, large = Face((0, 0, 30.4, 30), marks, 0.9), Face((40, -10, 90, 40), marks, 0.8)
    return [small, large] if image.width > image.height else []


two_faces.name = "known 1"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Artifact folders by the crop policy of their data; the model says how large its input is."""
    monkeypatch.setattr(crop_module, "default_detector", lambda: two_faces)

    class Stub:
        @classmethod
        def from_pretrained(cls, folder):
            return cls()

        def describe(self, image):
            return {"seen": list(image.size)}

    monkeypatch.setattr("face_mllm.chat.FaceMLLM", Stub)

    def make(faces):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        info = {"bases": BASES.to_json(), "chain": [{"stage": "s"}], "trained": [], "lora": False}
        if faces is not None:
            info["chain"][-1]["faces"] = faces
        (folder / STAGE_FILE).write_text(json.dumps(info))
        return folder

    return make


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "party.png"
    Image.new("RGB", (100, 50), "tan").save(path)
    return path


@pytest.mark.parametrize(
    "recorded, asked, expected",
    [
        (POLICY.as_manifest(), "auto", POLICY),
        (POLICY.as_manifest(), "detect", POLICY),
        (POLICY.as_manifest(), "none", NO_FACES),
        ("none", "auto", NO_FACES),
        ("none", "detect", FacePolicy()),
        (None, "auto", NO_FACES),  # an artifact of an earlier version
    ],
)
def test_the_recorded_policy_counts_unless_the_user_says_otherwise(
    model, recorded, asked, expected
):
    assert policy_for(model(recorded), asked) == expected


def test_another_word_is_refused(model):
    with pytest.raises(UserError, match="choose auto, none, detect"):
        policy_for(model("none"), "some")


def test_a_row_per_face_with_its_box_in_the_photograph(model, photo):
    rows = [
        json.loads(line)
        for line in describe_images(model(POLICY.as_manifest()), [photo]).splitlines()
    ]
    assert [row["box"] for row in rows] == [[40, 0, 90, 40], [0, 0, 30, 30]]
    assert [row["seen"] for row in rows] == [[64, 64], [64, 64]]
    table = describe_images(model(POLICY.as_manifest()), [photo], "csv")
    assert [row["box"] for row in csv.DictReader(io.StringIO(table))] == ["40 0 90 40", "0 0 30 30"]


def test_a_model_of_ready_crops_takes_the_picture_as_it_is(model, photo):
    (row,) = map(json.loads, describe_images(model("none"), [photo]).splitlines())
    assert (row["box"], row["seen"]) == ([0, 0, 100, 50], [100, 50])
    rows = describe_images(model("none"), [photo], faces="detect").splitlines()
    assert [json.loads(row)["seen"] for row in rows] == [[224, 224]] * 2


def test_a_photograph_without_a_face_is_named(model, tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "wall.png")
    with pytest.raises(UserError, match=r"wall\.png: no face found.*--faces none"):
        describe_images(model(POLICY.as_manifest()), [tmp_path / "wall.png"])


def test_chat_is_about_the_largest_face_and_says_so(model, photo, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "face_mllm.terminal_chat._answer", lambda _m, picture, *_: seen.append(picture.size)
    )
    converse(model(POLICY.as_manifest()), photo, "Smiling?")
    assert seen == [(64, 64)]
    assert "2 faces in" in capsys.readouterr().err
    converse(model(POLICY.as_manifest()), photo, "Smiling?", faces="none")
    assert seen[1] == (100, 50)


def test_faces_from_python(model, photo):
    loaded = FaceMLLM(scorer=None, folder=model(POLICY.as_manifest()))
    assert [face.image.size for face in loaded.faces(photo)] == [(64, 64), (64, 64)]
    assert [face.box for face in loaded.faces(photo, "none")] == [(0, 0, 100, 50)]


def test_an_unknown_policy_says_what_to_do(model, photo):
    with pytest.raises(UserError, match="--faces none"):
        policy_for(model({"align": "ears"}))
    assert open_faces(photo, NO_FACES)[0].box == (0, 0, 100, 50)
