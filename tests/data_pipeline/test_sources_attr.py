"""Traps of attribute, identity and age sets beyond what their miniature distributions hold."""

import csv
import json
from pathlib import Path

import pytest
from source_fixtures import (
    afad,
    celeba,
    celeba_dialog,
    fairface,
    ffhq_features,
    maadface,
    morph2,
    picture,
    utkface,
    vggface2,
)

from data_pipeline.labels.attributes import CELEBA_ATTRIBUTES
from data_pipeline.records import FaceRecord
from data_pipeline.sources import Dropped, get_source
from face_mllm.errors import UserError


def read(name, root, protocol=None, **options):
    source = get_source(name)
    chosen = source.options(**options)
    return list(source.read_rows(root, chosen, source.protocol(protocol, chosen)))


def records(rows):
    return {row.id: row for row in rows if isinstance(row, FaceRecord)}


def change(path, old, new):
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


# --- CelebA


def test_celeba_no_beard_is_a_negation_and_never_missing(tmp_path):
    celeba.write(tmp_path)
    found = records(read("celeba", tmp_path))
    assert found["celeba_000001"].labels["attributes"]["beard"] is False
    assert found["celeba_000003"].labels["attributes"]["beard"] is True
    assert "no_beard" not in found["celeba_000001"].labels["attributes"]
    assert len(found["celeba_000003"].labels["attributes"]) == 40


@pytest.mark.parametrize("where", [".", "Anno", "../"])
def test_celeba_is_found_one_level_up_and_down(tmp_path, where):
    celeba.write(tmp_path / "CelebA")
    root = tmp_path / "CelebA" / where
    assert get_source("celeba").detect(root).name == "official lists (txt)"
    (first, *_) = read("celeba", root)
    assert Path(first.image).is_file()


def write_csv_copy(root):
    """The csv copies: header, no count, no identities, and the picture folder twice."""
    for file in celeba.PRESENT:
        picture(root / "img_align_celeba/img_align_celeba" / file)
    attributes = [[file, *celeba.cells(p, ",").split(",")] for file, p in celeba.PRESENT.items()]
    tables = {
        "list_attr_celeba.csv": [["image_id", *CELEBA_ATTRIBUTES], *attributes],
        "list_eval_partition.csv": [["image_id", "partition"], *celeba.PARTITION.items()],
    }
    for name, rows in tables.items():
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def test_celeba_csv_copies_read_alike(tmp_path):
    write_csv_copy(tmp_path)
    found = records(read("celeba", tmp_path))
    assert {key: (row.split, row.labels) for key, row in found.items()} == celeba.RECORDS
    assert all(row.subject == key and Path(row.image).is_file() for key, row in found.items())
    variant = get_source("celeba").detect(tmp_path)
    assert variant.name == "lists as csv (Kaggle)"
    assert "identity_CelebA.txt" in variant.missing
    assert "its own subject" in variant.notes[0]


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "Anno/list_attr_celeba.txt",
            "000002.jpg -1",
            "000002.jpg 0",
            "row 2, column '5_o_C.*: '0'",
        ),
        ("Anno/list_attr_celeba.txt", "000003.jpg -1", "000003.jpg x", "row 3, .*'x' is none of"),
        ("Anno/list_attr_celeba.txt", "4\r\n", "5\r\n", "4 rows where line 1 says 5"),
        ("Anno/list_attr_celeba.txt", "4\r\n", "names\r\n", "line 1 is not the number"),
        ("Anno/list_attr_celeba.txt", "000002.jpg -1", "000002.jpg -1 1", r"list_attr.*line 4"),
    ],
)
def test_celeba_broken_lists_are_named(tmp_path, name, old, new, said):
    celeba.write(tmp_path)
    change(tmp_path / name, old, new)
    with pytest.raises(UserError, match=said):
        read("celeba", tmp_path)


def test_celeba_missing_lists_are_named(tmp_path):
    with pytest.raises(UserError, match=r"not CelebA: no list_attr_celeba.txt"):
        read("celeba", tmp_path)
    celeba.write(tmp_path)
    (tmp_path / "Eval/list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"list_eval_partition.txt: no such file"):
        read("celeba", tmp_path)


# --- FairFace


def test_fairface_dates_are_reported_and_read_back(tmp_path):
    fairface.write(tmp_path / "FairFace")
    variant = get_source("fairface").detect(tmp_path)
    assert "9-Mar" in variant.notes[0]
    assert variant.name == "pictures of margin025"
    assert variant.missing == ()
    for row in read("fairface", tmp_path):
        assert Path(row.image).is_file()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("9-Mar", "3-Sep", "row 2, column 'age': '3-Sep' is no age band"),
        ("9-Mar", "Mar-09", "row 2, column 'age': 'Mar-09' is no age band"),
        ("9-Mar", "20-30", "'20-30' is no age band"),
        ("Female", "f", "row 2, column 'gender': 'f' is none of Male, Female"),
        ("FALSE", "", "row 3, column 'service_test': '' is none of"),
        ("file,age", "file,years", "no column 'age'.*columns are file, years"),
    ],
)
def test_fairface_cells_without_meaning_are_named(tmp_path, old, new, said):
    fairface.write(tmp_path)
    change(tmp_path / "fairface_label_train.csv", old, new)
    with pytest.raises(UserError, match=f"fairface_label_train.csv: .*{said}"):
        read("fairface", tmp_path)


# --- UTKFace, AFAD


def test_utkface_photographs_drop_what_is_malformed(tmp_path):
    names = ("61_3_20170109150557335.jpg", "53__0_20170116184028385.jpg")
    for name in ("26_0_1_20170116184028385.jpg", *names):
        picture(tmp_path / "part1" / name)
    (tmp_path / "part2").mkdir()
    (tmp_path / "part2/55_0_0_20170116232725357jpg").write_bytes(b"")
    (tmp_path / "part2/117_0_0_20170116232725357.jpg").write_bytes(b"")
    (tmp_path / "part2/landmark_list_part2.txt").write_text("")
    picture(tmp_path / "part2/26_0_1_20170116184028385.jpg")
    variant = get_source("utkface").detect(tmp_path)
    assert (variant.name, variant.missing) == ("photographs (part1-3)", ("part3",))
    found = read("utkface", tmp_path)
    assert list(records(found)) == ["utkface_26_0_1_20170116184028385"]
    reasons = [(row.reason, row.where) for row in found if isinstance(row, Dropped)]
    assert [reason for reason, _ in reasons].count("malformed name") == 4
    assert ("same name in another folder", "part2/26_0_1_20170116184028385.jpg") in reasons


def test_utkface_root_may_be_the_flat_folder(tmp_path):
    utkface.write(tmp_path)
    assert len(records(read("utkface", tmp_path / "UTKFace"))) == 3
    with pytest.raises(UserError, match="not UTKFace"):
        read("utkface", tmp_path / "nothing")


def test_afad_lite_and_root_one_level_down(tmp_path):
    afad.write(tmp_path)
    assert get_source("afad").detect(tmp_path / "AFAD-Full/18").name == "Lite (ages 15-40)"
    picture(tmp_path / "AFAD-Full/72/112/9-0.jpg")
    assert get_source("afad").detect(tmp_path).name == "Full (ages beyond 40)"
    with pytest.raises(UserError, match="not AFAD"):
        read("afad", tmp_path / "AFAD-Full/18/111")


# --- VGGFace2, MAAD-Face


def test_vggface2_falls_back_to_folders(tmp_path):
    vggface2.write(tmp_path)
    listed = [row.id for row in read("vggface2", tmp_path)]
    (tmp_path / "bb_landmark/loose_bb_train.csv").unlink()
    (tmp_path / "test_list.txt").unlink()
    walked = read("vggface2", tmp_path / "meta")
    assert [row.id for row in walked] == listed
    assert all(Path(row.image).is_file() and row.box == () for row in walked)


def test_vggface2_says_what_is_missing(tmp_path):
    vggface2.write(tmp_path)
    change(tmp_path / "meta/identity_meta.csv", "1, m,", "1, x,")
    with pytest.raises(UserError, match=r"identity_meta.csv: row 2: no gender"):
        read("vggface2", tmp_path)
    (tmp_path / "meta/identity_meta.csv").unlink()
    assert get_source("vggface2").detect(tmp_path).missing == ("meta/identity_meta.csv",)
    with pytest.raises(UserError, match="not VGGFace2"):
        read("vggface2", tmp_path)


def test_vggface2_without_lists_or_pictures(tmp_path):
    (tmp_path / "identity_meta.csv").write_text(vggface2.META)
    with pytest.raises(UserError, match=r"no loose_bb_train.csv"):
        read("vggface2", tmp_path)


def test_maadface_pictures_may_lie_elsewhere(tmp_path):
    maadface.write(tmp_path / "vgg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "vgg/MAAD_Face.csv").rename(tmp_path / "labels/MAAD_Face.csv")
    assert "images:" in get_source("maadface").detect(tmp_path / "labels").notes[0]
    rows = read("maadface", tmp_path / "labels", images=tmp_path / "vgg")
    assert [Path(row.image).is_file() for row in rows] == [True, True, True, False]


def test_maadface_unknown_codes_are_named(tmp_path):
    maadface.write(tmp_path)
    change(tmp_path / "MAAD_Face.csv", "n000003,1,0", "n000003,2,0")
    with pytest.raises(UserError, match="row 3, column 'Male': '2' is none of 1, -1, 0"):
        read("maadface", tmp_path)


# --- FFHQ-Features, MORPH-II


def test_ffhq_pictures_flat_and_elsewhere(tmp_path):
    ffhq_features.write(tmp_path / "a")
    assert all(
        Path(row.image).is_file() for row in records(read("ffhq_features", tmp_path)).values()
    )
    (tmp_path / "a/images1024x1024").rename(tmp_path / "away")
    variant = get_source("ffhq_features").detect(tmp_path / "a/json")
    assert (variant.name, variant.missing) == ("json without pictures", ("images1024x1024",))
    picture(tmp_path / "flat/00000.jpg")
    (row, *_) = read("ffhq_features", tmp_path / "a", images=tmp_path / "flat")
    assert row.image == str(tmp_path / "flat/00000.jpg")


@pytest.mark.parametrize("text", ["{}", "[", "[3]", '[{"faceAttributes": {"smile": "much"}}]'])
def test_ffhq_broken_json_is_named(tmp_path, text):
    ffhq_features.write(tmp_path)
    (tmp_path / "json/00001.json").write_text(text)
    with pytest.raises(UserError, match=r"00001\.json: "):
        read("ffhq_features", tmp_path)


def test_morph2_pictures_are_found_and_cells_checked(tmp_path):
    morph2.write(tmp_path / "MORPH")
    assert all(Path(row.image).is_file() for row in read("morph2", tmp_path))
    change(tmp_path / "MORPH/morph_2008_nonCommercial.csv", "NULL,24,", "NULL,-24,")
    with pytest.raises(UserError, match="row 3, column 'age': '-24' is no age"):
        read("morph2", tmp_path)
    change(tmp_path / "MORPH/morph_2008_nonCommercial.csv", "W,F,", "W,,")
    with pytest.raises(UserError, match="row 3, column 'gender': '' is none of M, F"):
        read("morph2", tmp_path)


# --- CelebA-Dialog


def test_celeba_dialog_captions_and_pictures(tmp_path):
    celeba_dialog.write(tmp_path)
    found = records(read("celeba_dialog", tmp_path))
    assert found["celeba_dialog_000001"].caption == "This man has a bushy beard."
    assert all(Path(row.image).is_file() for row in found.values())
    change(tmp_path / "val_attr_list.txt", "1 2 1 3 5", "1 2 1 3 6")
    with pytest.raises(UserError, match=r"val_attr_list.txt: row 1 \(000003.jpg\): not five"):
        read("celeba_dialog", tmp_path)


def test_celeba_dialog_hq_edition_without_lists(tmp_path):
    (tmp_path / "text_hq").mkdir()
    captions = {"0.jpg": {"overall_caption": "She smiles."}, "5380.jpg": {"overall_caption": ""}}
    (tmp_path / "text_hq/captions_hq.json").write_text(json.dumps(captions))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/identity_hq.txt").write_text("0.jpg 1437\n")
    picture(tmp_path / "images_hq/image/0.jpg")
    variant = get_source("celeba_dialog").detect(tmp_path)
    assert variant.name == "HQ numbers: captions"
    assert variant.missing == ("train_attr_list.txt",)
    (row,) = read("celeba_dialog", tmp_path)
    assert (row.caption, row.subject) == ("She smiles.", "celeba_dialog_1437")
    assert (row.labels, Path(row.image).is_file()) == ({}, True)


def test_celeba_dialog_combined_list_has_no_splits(tmp_path):
    rows = "2\nBangs Eyeglasses No_Beard Smiling Young\n000001.jpg 0 0 0 0 2\n"
    (tmp_path / "combined_annotation.txt").write_text(rows)
    (row,) = read("celeba_dialog", tmp_path)
    assert row.labels["age_band"] == "30-39"
    with pytest.raises(UserError, match="not CelebA-Dialog"):
        read("celeba_dialog", tmp_path / "x")
