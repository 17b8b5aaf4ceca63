"""Traps of the sequence sets: CK+ peak frames and frame lists of videos."""

from __future__ import annotations

import shutil

import pytest
from reading import labels, read, text
from source_fixtures import ckplus, picture

from data_pipeline.sources import get_source, hash_split
from face_mllm.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


# --- CK+


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("FACS/S005/001/S005_001_00000011_facs.txt", "9\n", "line 1: '9'.*expected `AU intens"),
        ("FACS/S005/001/S005_001_00000011_facs.txt", "9 6\n", "intensity 6 is not within"),
        ("FACS/S005/001/S005_001_00000011_facs.txt", "9 nan\n", "'nan' is not a number"),
        ("Emotion/S005/001/S005_001_00000011_emotion.txt", "8.0e+00\n", "8 is no expression"),
        ("Emotion/S005/001/S005_001_00000011_emotion.txt", "3\n4\n", "2 lines instead of one"),
        ("Emotion/S005/001/peak_emotion.txt", "3\n", "unexpected name"),
    ],
)
def test_ckplus_bad_files_are_named(tmp_path, name, content, said):
    ckplus.write(tmp_path)
    text(tmp_path / name, content)
    with pytest.raises(UserError, match=f"{name.rpartition('/')[2]}: .*{said}"):
        read("ckplus", tmp_path)


def test_ckplus_as_its_archives_unpack_and_with_parts_missing(tmp_path):
    ckplus.write(tmp_path)
    expected = labels(read("ckplus", tmp_path))
    (tmp_path / "FACS").rename(tmp_path / "FACS_labels")
    (tmp_path / "Emotion_labels").mkdir()
    (tmp_path / "Emotion").rename(tmp_path / "Emotion_labels" / "Emotion")
    (tmp_path / "extended-cohn-kanade-images").mkdir()
    inside = tmp_path / "extended-cohn-kanade-images" / "cohn-kanade-images"
    (tmp_path / "cohn-kanade-images").rename(inside)
    assert labels(read("ckplus", tmp_path)) == expected
    shutil.rmtree(tmp_path / "FACS_labels")
    assert get_source("ckplus").detect(tmp_path).missing == ("FACS",)
    found = read("ckplus", tmp_path)
    assert [set(row.labels) for row in found] == [{"expression"}] * 2
    shutil.rmtree(tmp_path / "Emotion_labels")
    assert get_source("ckplus").detect(tmp_path) is None
    with pytest.raises(UserError, match="no FACS and no Emotion"):
        read("ckplus", tmp_path)


# --- frame lists


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("clip 3", "expected `<dir> <num_frames> <label>`"),
        ("clip many 1", "expected `<dir>"),
        ("clip 0 1", "expected `<dir>"),
        ("clip 3 11", "line 1: unknown label '11'.*values:"),
        ("Sad/clip 3 0", "label 0 read as happiness, but the clip lies under sadness.*codes:"),
    ],
)
def test_video_list_bad_lines_are_named(tmp_path, line, said):
    path = text(tmp_path / "train.txt", f"{line}\n")
    with pytest.raises(UserError, match=f"train.txt: .*{said}"):
        read("video_list", path)


def test_video_list_needs_one_list_per_split(tmp_path):
    for name in ("set_1_train", "set_2_train"):
        text(tmp_path / f"{name}.txt", "clip 1 0\n")
    picture(tmp_path / "clip" / "0001.jpg")
    with pytest.raises(UserError, match=r"several lists for one split: .*lists: '\*set_1_"):
        read("video_list", tmp_path)
    (only,) = read("video_list", tmp_path, lists="set_2_*.txt", frames=4)
    assert (only.id, only.split) == ("video_list_clip_0001", "train")
    with pytest.raises(UserError, match=r"no list \*.lst"):
        read("video_list", tmp_path, lists="*.lst")


def test_video_list_numbered_by_dfew_or_by_words(tmp_path):
    picture(tmp_path / "clip" / "0001.jpg")
    path = text(tmp_path / "mine.txt", "clip 1 7\n")
    found = [
        *read("video_list", path),
        *read("video_list", path, codes="dfew"),
        *read("video_list", path, values={7: "joy"}),
        *read("video_list", path, values={7: None}),
    ]
    words = [row.labels["expression"] for row in found[:-1]]
    assert words == ["contempt", "fear", "happiness"]
    assert found[-1].reason == "class '7' left out by values"
    assert found[0].split == hash_split("video_list_clip")
    assert "mine.txt" in get_source("video_list").detect(tmp_path).name


def test_video_list_protocol_names_lists_and_frames():
    source = get_source("video_list")
    options = source.options(lists="DFEW_set_1_*.txt", frames=2)
    assert source.protocol(None, options).name == "video_list/DFEW_set_1_*.txt/2"
