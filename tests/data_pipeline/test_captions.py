"""Captions say only what the labels say, and nothing about held-out attributes."""

import random
import re

import pytest

from data_pipeline.captions import GENERAL, caption, statements, telling_caption
from data_pipeline.labels import attributes, find_leaks

HELD_OUT = ("smiling", "mouth_open", "blond_hair", "eyes_closed")
LABELS = {
    "expression": "happiness",
    "action_units": {"AU12": 3.2, "AU25": 4.0, "AU43": 3.0, "AU6": 2.4, "AU4": 0.0, "AU45": 5.0},
    "attributes": dict.fromkeys(attributes(), True),
    "age": 34.2,
    "head_pose": {"yaw": 20.0, "pitch": -3.0, "roll": 12.0},
}


def many(labels, n=400, held_out=(), seed=0, **kwargs):
    rng = random.Random(seed)
    return [caption(labels, rng, held_out, **kwargs) for _ in range(n)]


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("value", [True, False])
def test_held_out_words_never_appear(short, value):
    labels = {**LABELS, "attributes": dict.fromkeys(attributes(), value)}
    texts = many(labels, held_out=HELD_OUT, short=short)
    assert find_leaks(texts, HELD_OUT) == []
    for name in HELD_OUT:  # and by a plain search, should the finder be wrong
        for word in attributes()[name].terms:
            assert not re.search(rf"\b{re.escape(word.lower())}\b", " | ".join(texts).lower()), word


def test_the_same_words_do_appear_when_nothing_is_held_out():
    text = " ".join(many(LABELS, 2000))
    for word in ("smile", "open mouth", "blond hair", "closed eyes", "lips part", "eye closure"):
        assert word in text


def test_a_held_out_gender_leaves_the_subject_neutral():
    labels = {"gender": "female", "attributes": {"male": False}}
    text = " ".join(many(labels, 100, held_out=("male",)))
    assert not re.search(r"\b(woman|female|man|male)\b", text)
    assert "a face" in text


def test_unknown_is_never_spoken_of():
    for text in many({"age": 20.0}, 50):
        assert not re.search(r"AU|man|beard|expression|camera|head", text)


def test_faces_without_active_units_say_so_and_quiet_units_are_denied():
    text = " | ".join(many({"action_units": {"AU1": 0.0, "AU4": 0.2, "AU12": 1.5}}))
    assert "no active action units" in text
    assert "no AU4 brow lowerer" in text
    assert not re.search(r"(?<!no )AU\d", text)
    assert "AU12" not in text  # a weak 1.5 is neither active nor absent


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        ({"yaw": 20.0}, "head turned left"),
        ({"yaw": -20.0}, "head turned right"),
        ({"pitch": 20.0}, "head up"),
        ({"pitch": -20.0}, "head down"),
        ({"roll": 20.0}, "head tilted clockwise"),
        ({"roll": -20.0}, "head tilted counterclockwise"),
        ({"yaw": 2.0, "pitch": -3.0, "roll": 1.0}, "facing the camera"),
    ],
)
def test_pose_words_follow_the_sign_convention(pose, words):
    directions = {"left", "right", "up", "down", "clockwise", "counterclockwise", "camera"}
    text = " ".join(many({"head_pose": pose}, 60))
    assert words in text
    assert set(text.replace(",", " ").split()) & directions <= set(words.split())


def test_same_state_same_caption_and_other_states_vary():
    assert many(LABELS, 20, seed=3) == many(LABELS, 20, seed=3)
    assert len(set(many(LABELS, 50, seed=3))) > 45


def test_short_captions_are_short():
    longest = max(len(re.findall(r"[A-Za-z]+|\d|,", text)) for text in many(LABELS, short=True))
    assert longest <= 28
    plain = many(LABELS, short=False)
    assert sum(map(len, plain)) > 1.5 * sum(map(len, many(LABELS, short=True)))


def test_statements_are_what_captions_say_of_one_fact():
    assert statements("attributes", "beard", False) == [
        "no beard",
        "without a beard",
        "a face without a beard",
    ]
    assert statements("attributes", "male", False) == ["a woman", "a female face"]
    assert statements("action_units", "AU12", False) == ["no AU12 lip corner puller", "no AU12"]
    assert statements("action_units", "AU43", True, HELD_OUT)[-1] == "AU43"
    assert "a fearful expression" in statements("expression", "fear", True)
    assert statements("attributes", "smiling", True, HELD_OUT) == []


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"compound_expression": "sadly angry"},
        {"expression_votes": {"fear": 0.5, "anger": 0.5}},
        {"action_units": {}, "attributes": {}, "head_pose": {}},
        {"attributes": {"smiling": True}},  # held out below
    ],
)
def test_nothing_to_say_is_no_caption(labels, short):
    rng = random.Random(0)
    assert telling_caption(labels, rng, ["smiling"], short=short) == ""


def test_something_to_say_is_said():
    labels = {"expression": "fear"}
    said = [telling_caption(labels, random.Random(seed)) for seed in range(200)]
    plain = [caption(labels, random.Random(seed)) for seed in range(200)]
    assert not set(said) & {"", *GENERAL}
    assert set(plain) & set(GENERAL)  # by chance
    assert all(one == other for one, other in zip(said, plain, strict=True) if other not in GENERAL)


def test_units_are_active_from_the_threshold_on():
    units = {"action_units": {"AU4": 1.0}}
    assert any("trace of AU4" in text for text in many(units, threshold=1))
    assert not any("trace" in text or "slight" in text for text in many(units))
