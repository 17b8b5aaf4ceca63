"""Layouts that look alike, told apart: one name where they differ, several where they do not."""

import json

import pytest
from source_fixtures import fer2013, ferplus, picture, rafdb_compound

from data_pipeline.inspect import candidates

SEVEN = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
EIGHT = ("anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
EIGHT_CAPITAL = [word.capitalize() for word in EIGHT]


def named(root):
    return [source.name for source, _ in candidates(root)]


def tree(root, splits, classes, stem="1", suffix=".jpg"):
    for split in splits:
        for name in classes:
            picture(root / split / name / f"{stem}{suffix}")


@pytest.mark.parametrize(
    ("splits", "classes", "stem", "expected"),
    [
        (("train", "valid", "test"), SEVEN, "1", ["mmafedb"]),
        (("train", "valid", "test"), SEVEN, "Training_1", ["mmafedb"]),  # it contains FER2013
        (("train", "valid", "test"), SEVEN[:4], "1", []),  # a tree of one's own
        (("train", "valid", "test"), (*SEVEN, "tired"), "1", []),
        (("train", "val", "test"), SEVEN, "1", []),
        (("train", "test"), SEVEN, "1", []),
        (("train", "test"), SEVEN, "Training_3908", ["fer2013"]),
        (("train", "test"), SEVEN, "im0", ["fer2013"]),
        (("train", "test"), [*EIGHT_CAPITAL[:1], *EIGHT_CAPITAL[2:]], "1", ["caers"]),
        (("train", "test"), ("Anger", "Fear"), "1", []),
        (("train", "val"), EIGHT, "1", ["affectnet2021"]),
        (("Train", "Test"), EIGHT_CAPITAL, "1", ["affectnet2021"]),
        (("train", "val"), range(8), "1", ["affectnet2021"]),
        (("train", "val"), range(7), "1", ["affectnet2021"]),
        (("train", "test"), range(1, 8), "1", ["rafdb"]),
        (("train", "test"), range(10), "1", []),
        (("Train", "Val"), [word.capitalize() for word in SEVEN], "1", ["sfew"]),
        (("train", "val"), ("male", "female"), "1", []),
    ],
)
def test_class_folders(tmp_path, splits, classes, stem, expected):
    tree(tmp_path, splits, [str(word) for word in classes], stem)
    assert named(tmp_path) == expected


def test_the_votes_make_it_ferplus(tmp_path):
    fer2013.write(tmp_path)
    assert named(tmp_path) == ["fer2013"]
    ferplus.write(tmp_path)
    assert named(tmp_path) == ["ferplus"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("train_00001.jpg 5\ntest_0001.jpg 7\n", ["rafdb"]),
        ("train_0001.jpg 1\ntest_0001.jpg 11\n", ["rafdb_compound"]),
    ],
)
def test_a_list_of_rafdb_outside_its_folder_is_told_by_its_codes(tmp_path, lines, expected):
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "EmoLabel" / "list_patition_label.txt").write_text(lines)
    assert named(tmp_path) == expected


def test_rafdb_with_both_parts_is_two_datasets(tmp_path):
    rafdb_compound.write(tmp_path)
    assert named(tmp_path) == ["rafdb", "rafdb_compound"]
    assert named(tmp_path / "compound") == ["rafdb_compound"]
    assert named(tmp_path / "basic") == ["rafdb"]


TURNS = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"image": "a.jpg", **TURNS}], ["llava"]),
        ([TURNS, {"image": "a.jpg", **TURNS}], ["llava"]),
        ([{"images": ["a.jpg"], **TURNS}], ["sharegpt"]),
        ([TURNS], ["llava", "sharegpt"]),  # text alone: nothing tells
        ([{"messages": [{"role": "user", "content": "?"}]}], ["messages"]),
    ],
)
def test_conversations_are_told_apart_by_how_they_name_pictures(tmp_path, rows, expected):
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    assert named(tmp_path) == expected


def test_a_list_of_pictures_with_numbers_is_no_list_of_clips(tmp_path):
    (tmp_path / "train.txt").write_text("000001.jpg 0 1 2\n")
    assert named(tmp_path) == []
    (tmp_path / "train.txt").write_text("clips/00001 16 3\n")
    assert named(tmp_path) == ["video_list"]
