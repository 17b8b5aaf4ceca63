"""The CLIP of ``benchmarks/experts`` that rarely meets the words of expressions."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import general

from data_pipeline.labels.expressions import ADJECTIVES, BASIC7
from data_pipeline.records import FaceRecord, iter_records, read_manifest, write_dataset
from face_mllm.configio import load_yaml_model
from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.texts import training_text

SHARE = 0.25


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """300 faces to train on and 20 to measure by; every one with an expression and an action."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    root = tmp_path_factory.mktemp("general") / "faces"
    with write_dataset(root) as writer:
        for n in range(320):
            labels = {
                "expression": BASIC7[n % 7], "action_units": {"AU4": 3.0},
                "facial_actions": {"browDownLeft": 0.6}, "age": 30.0, "gender": "female",
                "attributes": {"eyeglasses": n % 2 == 0, "smiling": n % 3 == 0},
            }  # fmt: skip
            split = "train" if n < 300 else "val"
            writer.add(
                FaceRecord(f"f{n}", "synth", split, f"f{n}", picture.getvalue(), labels,
                           caption="a sad woman")
            )  # fmt: skip
        (writer.folder / "manifest.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def data(faces):
    out = faces.parent / "data"
    general.hushed(faces, out, SHARE)
    return out


def test_a_share_of_the_training_faces_keeps_the_rare_labels(faces, data):
    before = {record.id: record for record in iter_records(faces)}
    after = list(iter_records(data))
    assert [record.id for record in after] == list(before)
    same = (r.id for r in after if r.split == "train" and r.labels == before[r.id].labels)
    kept = set(same)
    assert len(kept) == pytest.approx(300 * SHARE, abs=25)  # three standard deviations
    for record in after:
        given = before[record.id]
        assert record.image == given.image
        if record.split == "val" or record.id in kept:
            assert record.labels == given.labels
        else:
            spoken = {k: v for k, v in given.labels.items() if k not in general.UNSPOKEN}
            assert record.labels == spoken
            assert not record.caption
    assert read_manifest(data)["share"] == SHARE
    assert {r.id for r in before.values() if general.is_kept(r.id, 1)} == set(before)
    assert not any(general.is_kept(name, 0) for name in before)


def test_nothing_a_silent_face_is_captioned_with_names_expression_or_action(data, tmp_path):
    given = [f"data=[{data}]", f"out={tmp_path / 'clip'}", *general.SETTINGS]
    config = load_yaml_model("embedded/face_clip", FaceClipConfig, given)
    assert config.loss.expression == 0
    assert config.loss.action_unit == 0
    rng, words = random.Random(0), {*ADJECTIVES, *ADJECTIVES.values(), "expression", "AU4", "brow"}
    told = {True: 0, False: 0}
    for record in iter_records(data, ["train"]):
        speaks = "expression" in record.labels
        for _ in range(4):
            text = training_text(record.labels, rng, config.holdout_attributes)
            told[speaks] += any(word in text for word in words)
    assert told[False] == 0
    assert told[True] > 50  # the same words are there where the labels are


def test_what_is_there_is_not_made_again_and_the_settings_reach_the_training(
    faces, data, monkeypatch
):
    asked = []
    monkeypatch.setattr(general, "train", lambda *given: asked.append(given))
    monkeypatch.setattr(general, "synthesise", lambda *_, **__: pytest.fail("drawn again"))
    root = faces.parent
    clip = general.general_clip(root, 300, SHARE, 7, ["seed=3"], lambda *_: None)
    ((name, settings, _),) = asked
    config = load_yaml_model(name, FaceClipConfig, settings)
    assert (config.out, config.data, config.max_steps, config.seed) == (clip, (data,), 7, 3)
    clip.mkdir()
    assert general.general_clip(root, 300, SHARE, 7, [], lambda *_: None) == clip
    assert len(asked) == 1
    assert json.loads((data / "manifest.json").read_text())["counts"]["train"] == 300
