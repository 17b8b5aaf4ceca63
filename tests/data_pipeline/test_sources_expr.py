"""Traps of the expression sets: odd variants, rows nobody can read, protocols that differ."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
from source_fixtures import affectnet2017, affectnet2021, picture, rafdb

from data_pipeline.records import FaceRecord
from data_pipeline.sources import Dropped, get_source
from face_mllm.errors import UserError


def read(name, root, protocol=None, **options):
    source = get_source(name)
    chosen = source.options(**options)
    return list(source.read_rows(root, chosen, source.protocol(protocol, chosen)))


def labels(rows):
    return {row.id: row.labels for row in rows if isinstance(row, FaceRecord)}


def reasons(rows):
    return Counter(row.reason for row in rows if isinstance(row, Dropped))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


# --- RAF-DB


def test_rafdb_is_found_one_level_above_and_below_with_the_mended_list_name(tmp_path):
    rafdb.write(tmp_path / "RAF-DB")
    spelt = tmp_path / "RAF-DB" / "basic" / "EmoLabel"
    (spelt / "list_patition_label.txt").rename(spelt / "list_partition_label.txt")
    found = read("rafdb", tmp_path)
    assert len(found) == 4
    assert read("rafdb", tmp_path / "RAF-DB" / "basic") == found
    variant = get_source("rafdb").detect(tmp_path)
    assert variant.notes == ("list file spelt list_partition_label.txt",)
    assert variant.missing == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train_00001.jpg 8", "line 1: 8 is no expression of rafdb.*1, 2, 3"),
        ("train_00001.jpg 1.5", "'1.5' is not a whole number"),
        ("train_00001.jpg 0", "0 is no expression"),
        ("train_00001.jpg happy", "'happy' is not a number"),
        ("img_00001.jpg 1", "expected a line such as"),
    ],
)
def test_rafdb_bad_lines_are_named(tmp_path, line, said):
    text(tmp_path / "EmoLabel" / "list_patition_label.txt", f"{line}\n")
    with pytest.raises(UserError, match=f"list_patition_label.txt: .*{said}"):
        read("rafdb", tmp_path)


def test_rafdb_short_manual_file_is_named(tmp_path):
    rafdb.write(tmp_path)
    text(tmp_path / "basic/Annotation/manual/train_00002_manu_attri.txt", "1\t2\n")
    with pytest.raises(UserError, match=r"train_00002_manu_attri.txt: fewer than 8 lines"):
        read("rafdb", tmp_path)


def test_rafdb_mirror_with_numbered_folders_gives_the_same_ids(tmp_path):
    picture(tmp_path / "DATASET/train/1/train_00002_aligned.jpg")
    picture(tmp_path / "DATASET/test/7/test_0001_aligned.jpg")
    assert "mirror" in get_source("rafdb").detect(tmp_path).name
    assert labels(read("rafdb", tmp_path)) == {
        "rafdb_train_00002": {"expression": "surprise"},
        "rafdb_test_0001": {"expression": "neutral"},
    }


def test_rafdb_without_its_list(tmp_path):
    text(tmp_path / "compound" / "EmoLabel" / "list_patition_label.txt", "train_0001.jpg 1\n")
    with pytest.raises(UserError, match="no basic/EmoLabel"):
        read("rafdb", tmp_path)
    assert get_source("rafdb").detect(tmp_path) is None


# --- AffectNet


def test_affectnet2017_keeps_the_name_that_is_on_disk_and_notes_the_lost_header(tmp_path):
    affectnet2017.write(tmp_path / "AffectNet")
    rows = {row.id: row for row in read("affectnet2017", tmp_path) if isinstance(row, FaceRecord)}
    assert rows["affectnet2017_bb"].image.endswith("Images/1/bb.jpg")  # listed as bb.JPG
    variant = get_source("affectnet2017").detect(tmp_path)
    assert (variant.missing, variant.notes) == ((), ())
    folder = tmp_path / "AffectNet" / "Manually_Annotated_file_lists"
    (folder / "training.csv").unlink()
    variant = get_source("affectnet2017").detect(tmp_path)
    assert variant.missing == ("training.csv",)
    assert variant.notes == ("validation.csv has no header row",)
    with pytest.raises(UserError, match=r"no .*training.csv"):
        read("affectnet2017", tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1/a.jpg,1,2,3,4,0;0,11,0,0", "row 1: 11 is no expression of affectnet2017"),
        ("1/a.jpg,1,2,3,4,0;0,1,0", "row 1 has not 9 cells"),
        ("1/a.jpg,1,2,x,4,0;0,1,0,0", "row 1: 'x' is not a number"),
        ("subDirectory_filePath,face_x,expression", "no column 'face_y'"),
    ],
)
def test_affectnet2017_bad_rows_are_named(tmp_path, row, said):
    (tmp_path / "Manually_Annotated_Images").mkdir()
    text(tmp_path / "training.csv", f"{row}\n")
    with pytest.raises(UserError, match=f"training.csv: .*{said}"):
        read("affectnet2017", tmp_path)


def test_affectnet2021_broken_annotation_and_missing_set_are_named(tmp_path):
    affectnet2021.write(tmp_path)
    broken = tmp_path / "train_set" / "annotations" / "2_exp.npy"
    broken.write_bytes(b"x")
    with pytest.raises(UserError, match=r"2_exp.npy: unreadable"):
        read("affectnet2021", tmp_path)
    np.save(broken, np.str_("8"))
    with pytest.raises(UserError, match=r"2_exp.npy: 8 is no expression"):
        read("affectnet2021", tmp_path)
    shutil.rmtree(tmp_path / "train_set")
    assert "train_set/annotations" in get_source("affectnet2021").detect(tmp_path).missing
    with pytest.raises(UserError, match="train_set/annotations: no such folder"):
        read("affectnet2021", tmp_path)


def test_affectnet2021_numbered_mirrors_are_not_guessed(tmp_path):
    picture(tmp_path / "train" / "0" / "a.jpg")
    picture(tmp_path / "val" / "7" / "b.jpg")
    assert "alphabetically" in get_source("affectnet2021").detect(tmp_path).notes[0]
    with pytest.raises(UserError, match=r"0 anger.*mirror: alphabetical"):
        read("affectnet2021", tmp_path)
    alphabetical = labels(read("affectnet2021", tmp_path, mirror="alphabetical"))
    native = labels(read("affectnet2021", tmp_path, mirror="native"))
    assert [row["expression"] for row in alphabetical.values()] == ["anger", "surprise"]
    assert [row["expression"] for row in native.values()] == ["neutral", "contempt"]


def test_affectnet2021_mirror_with_words(tmp_path):
    picture(tmp_path / "AffectNet" / "train" / "Anger" / "a.jpg")
    picture(tmp_path / "AffectNet" / "val" / "contempt" / "b.jpg")
    text(tmp_path / "AffectNet" / "val" / "contempt" / "notes.txt", "")
    rows = read("affectnet2021", tmp_path, "affectnet2021/7class-val-as-test")
    assert labels(rows) == {"affectnet2021_train_Anger_a": {"expression": "anger"}}
    expected = {"contempt left out by the protocol": 1, "not an image file": 1}
    assert reasons(rows) == expected
    assert "words" in get_source("affectnet2021").detect(tmp_path).name
