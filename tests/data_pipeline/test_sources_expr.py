"""Traps of the expression sets: odd variants, rows nobody can read, protocols that differ."""

from __future__ import annotations

from collections import Counter

import pytest
from source_fixtures import picture, rafdb

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
        ("train_00001.jpg 0", "0 is no expression"),
        ("train_00001.jpg happy", "'happy' is not a whole number"),
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
