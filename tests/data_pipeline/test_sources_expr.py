"""Traps of the expression sets: odd variants, rows nobody can read, protocols that differ."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from reading import labels, read, reasons, text
from source_fixtures import (
    affectnet2017,
    affectnet2021,
    caers,
    expw,
    fer2013,
    ferplus,
    mmafedb,
    picture,
    rafdb,
    rafdb_compound,
)

from data_pipeline.labels import COMPOUND_EXPRESSIONS
from data_pipeline.labels.codes import codes
from data_pipeline.records import FaceRecord
from data_pipeline.sources import get_source
from face_mllm.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


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


def test_rafdb_basic_and_compound_keep_apart(tmp_path):
    rafdb_compound.write(tmp_path)
    assert labels(read("rafdb", tmp_path)) == {"rafdb_train_00001": {"expression": "sadness"}}
    shutil.rmtree(tmp_path / "compound")
    assert get_source("rafdb_compound").detect(tmp_path) is None
    with pytest.raises(UserError, match="no compound/EmoLabel"):
        read("rafdb_compound", tmp_path)


def test_compound_codes_are_the_canonical_words_in_order():
    assert tuple(codes("rafdb_compound", "compound_expression").values()) == COMPOUND_EXPRESSIONS


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


# --- FER2013, FER+


def test_fer2013_pixels_come_out_as_they_went_in(tmp_path):
    fer2013.write(tmp_path)
    first = read("fer2013", tmp_path)[0]
    image = np.asarray(Image.open(io.BytesIO(first.image)))
    assert image.shape == (48, 48)
    assert image.ravel().tolist() == fer2013.pixels(0)
    assert image[0, 1] == fer2013.pixels(0)[1]  # row by row


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0,1 2 3,Training", "row 1: not 2304 grey values"),
        (f"0,{'1 ' * 2303}256,Training", "row 1: not 2304 grey values"),
        (f"7,{'1 ' * 2304},Training", "row 1: 7 is no expression of fer2013"),
        (f"0,{'1 ' * 2304},Extra", "row 1: Usage 'Extra'"),
        (f"0,{'1 ' * 2304}", "row 1 has not 3 cells"),
    ],
)
def test_fer2013_bad_rows_are_named(tmp_path, row, said):
    text(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n{row}\n")
    with pytest.raises(UserError, match=f"fer2013.csv: .*{said}"):
        read("fer2013", tmp_path)


def test_fer2013_kaggle_variants(tmp_path):
    rows = fer2013.ROWS[:2]
    lines = [f"{code},{usage},{fer2013.line(place)}" for place, (code, usage) in enumerate(rows)]
    text(tmp_path / "a" / "icml_face_data.csv", "\n".join(["emotion, Usage, pixels", *lines]))
    same = labels(read("fer2013", tmp_path))
    assert same == {f"fer2013_0000{place}": fer2013.EXPECTED[place][1] for place in range(2)}

    lines = [f"{code},{fer2013.line(place)}" for place, (code, _) in enumerate(rows)]
    train = text(tmp_path / "b" / "train.csv", "\n".join(["emotion,pixels", *lines]))
    text(tmp_path / "b" / "test.csv", "pixels\n" + fer2013.line(9))
    assert {row.split for row in read("fer2013", train.parent)} == {"train"}
    variant = get_source("fer2013").detect(train.parent)
    assert variant.missing == ("fer2013.csv",)
    assert "no labels" in variant.notes[1]
    assert read("fer2013", train) == read("fer2013", train.parent)  # the file itself as root

    picture(tmp_path / "c" / "train" / "angry" / "Training_1.jpg")
    picture(tmp_path / "c" / "test" / "happy" / "PrivateTest_1.jpg")
    assert labels(read("fer2013", tmp_path / "c")) == {
        "fer2013_train_angry_Training_1": {"expression": "anger"},
        "fer2013_test_happy_PrivateTest_1": {"expression": "happiness"},
    }
    assert "PrivateTest" in get_source("fer2013").detect(tmp_path / "c").notes[0]


def test_ferplus_needs_the_pictures_of_fer2013_row_by_row(tmp_path):
    ferplus.write(tmp_path)
    pixels = tmp_path / "fer2013.csv"
    elsewhere = tmp_path / "else" / "deep"
    elsewhere.mkdir(parents=True)
    expected = read("ferplus", tmp_path)
    pixels.rename(elsewhere / "fer2013.csv")
    with pytest.raises(UserError, match=r"without fer2013.csv.*option `fer2013:`"):
        read("ferplus", tmp_path)
    assert get_source("ferplus").detect(tmp_path).missing == ("fer2013.csv",)
    assert read("ferplus", tmp_path, fer2013=elsewhere) == expected
    lines = (elsewhere / "fer2013.csv").read_text().splitlines()
    for mixed in (lines[:-1], [lines[0], lines[-1], *lines[1:-1]]):
        text(pixels, "\n".join(mixed))
        with pytest.raises(UserError, match=r"is not the face of row \d+ of .*joined by row"):
            read("ferplus", tmp_path)


def test_ferplus_folders(tmp_path):
    top = tmp_path / "FERPlus" / "data"
    text(top / "FER2013Train/label.csv", 'fer0000001.png,"(0, 0, 48, 48)",6,0,1,1,0,0,0,0,2,0\n')
    text(top / "FER2013Valid/label.csv", 'fer0000002.png,"(0, 0, 48, 48)",3,3,3,0,0,0,0,0,1,0\n')
    text(top / "FER2013Test/label.csv", 'fer0000003.png,"(0, 0, 48, 48)",0,0,0,0,0,0,0,7,3,0\n')
    rows = read("ferplus", tmp_path)
    assert [(row.id, row.split) for row in rows if isinstance(row, FaceRecord)] == [
        ("ferplus_fer0000001", "train"),
        ("ferplus_fer0000003", "test"),
    ]
    assert rows[0].image == str(top / "FER2013Train" / "fer0000001.png")
    assert reasons(rows) == {"no expression by the votes": 1}
    assert "label.csv" in get_source("ferplus").detect(tmp_path).name
    (top / "FER2013Test/label.csv").unlink()
    assert get_source("ferplus").detect(tmp_path).missing == ("FER2013Test/label.csv",)
    text(top / "FER2013Train/label.csv", "fer0000001.png,6,0\n")
    with pytest.raises(UserError, match=r"label.csv: row 1 has not 12 cells"):
        read("ferplus", tmp_path)


# --- ExpW, SFEW, CAER-S, MMAFEDB


def test_expw_bad_lines_and_missing_parts_are_named(tmp_path):
    expw.write(tmp_path / "ExpW")
    assert get_source("expw").detect(tmp_path).missing == ()
    listing = tmp_path / "ExpW" / "label" / "label.lst"
    text(listing, "a.jpg 0 1 2 3 4 3\n")
    with pytest.raises(UserError, match=r"label.lst: line 1 has not 8 cells"):
        read("expw", tmp_path)
    text(listing, "a.jpg 0 1 2 30 40 0.5 7\n")
    with pytest.raises(UserError, match=r"label.lst: line 1: 7 is no expression of expw"):
        read("expw", tmp_path)
    shutil.rmtree(tmp_path / "ExpW" / "image")
    assert get_source("expw").detect(tmp_path).missing == ("image/origin",)
    with pytest.raises(UserError, match="no image/origin"):
        read("expw", tmp_path)


def test_sfew_original_frames_and_a_folder_that_is_no_class(tmp_path):
    picture(tmp_path / "Train" / "Angry" / "a.png")
    assert labels(read("sfew", tmp_path)) == {"sfew_train_Angry_a": {"expression": "anger"}}
    variant = get_source("sfew").detect(tmp_path)
    assert (variant.name, variant.missing) == ("original frames", ("Val",))
    picture(tmp_path / "Train" / "Anger" / "a.png")
    with pytest.raises(UserError, match="Anger: not a class folder"):
        read("sfew", tmp_path)


def test_caers_boxes_come_from_a_table(tmp_path):
    caers.write(tmp_path)
    rows = "train/Anger/0001.png,Anger,1,2,20,30\nCAER-S\\test\\Sad\\0001.png,Sad,3,4,9.5,9\n"
    boxes = text(tmp_path / "boxes.csv", f"relpath,label,x1,y1,x2,y2\n{rows}")
    found = read("caers", tmp_path, boxes=boxes)
    assert {row.id: row.box for row in found if isinstance(row, FaceRecord)} == {
        "caers_train_Anger_0001": (1, 2, 20, 30),
        "caers_test_Sad_0001": (3, 4, 9.5, 9),
    }
    assert reasons(found) == {"no face box": 12}
    text(boxes, "relpath,label,x1,y1,x2,y2\ntrain/Anger/0001.png,Anger,1,2,x,30\n")
    with pytest.raises(UserError, match=r"boxes.csv: row 1: 'x' is not a number"):
        read("caers", tmp_path, boxes=boxes)


def test_mmafedb_says_what_it_contains(tmp_path):
    mmafedb.write(tmp_path)
    assert "FER2013" in get_source("mmafedb").detect(tmp_path).notes[0]
    assert "fer2013" in get_source("mmafedb").overlaps
    assert "mmafedb" in get_source("fer2013").overlaps
    picture(tmp_path / "other" / "train" / "angry" / "1.jpg")  # FER2013's mirror looks alike
    assert get_source("mmafedb").detect(tmp_path / "other") is None


@pytest.mark.parametrize("name", ["sfew", "caers", "mmafedb", "expw", "fer2013", "ferplus"])
def test_an_empty_folder_is_an_error_with_what_was_looked_for(tmp_path, name):
    with pytest.raises(UserError, match=r"no .*(Angry|Anger|angry|label|fer2013)"):
        read(name, tmp_path)
