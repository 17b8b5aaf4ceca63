"""Traps of the action-unit readers that one good miniature cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from reading import read, records, written
from source_fixtures import disfa, picture

from data_pipeline.labels import action_units, parse_sided_unit, validate_labels
from data_pipeline.sources import Dropped, get_source
from face_mllm.errors import UserError

SN_OF_DISFAPLUS = [f"SN{n:03d}" for n in (1, 3, 4, 7, 9, 10, 13, 25, 27)]


# --- DISFA


def test_disfa_offset_is_asked_for_and_checked(tmp_path):
    root = written("disfa", tmp_path)
    with pytest.raises(ValidationError, match="frame_offset"):
        read("disfa", root)
    with pytest.raises(UserError, match=r"SN001.* 4 pictures numbered 0 to 3.*frame_offset: -1"):
        read("disfa", root, frame_offset=0)
    with pytest.raises(UserError, match=r"label frames are -1 to 1.*frame_offset: -1"):
        read("disfa", root, frame_offset=-2)


def test_disfa_frames_named_as_ffmpeg_counts(tmp_path):
    disfa.write_labels(tmp_path, "SN001")
    for number in (1, 2, 3):
        picture(tmp_path / "Frames" / "SN001" / f"SN001_{number:04d}.jpg")
    found = read("disfa", tmp_path / "ActionUnit_Labels", frame_offset=0)
    assert [Path(row.image).name for row in found] == [f"SN001_000{n}.jpg" for n in (1, 2, 3)]
    assert get_source("disfa").detect(tmp_path).notes == (
        "Frames: first picture 1 (frame_offset 0)",
    )


def test_disfa_reads_one_camera(tmp_path):
    root = written("disfa", tmp_path)
    picture(root / "Images" / "Right" / "SN001" / "0.png")
    with pytest.raises(UserError, match="frames in Frames, Images/Right; both cameras"):
        read("disfa", root, frame_offset=-1)
    assert len(records(read("disfa", root, frame_offset=-1, images="Images/Right"))) == 1


def test_disfa_labels_must_be_whole(tmp_path):
    root = written("disfa", tmp_path)
    folder = root / "ActionUnit_Labels" / "SN001"
    (folder / "SN001_au12.txt").write_text("1,0\n2,7\n")
    with pytest.raises(UserError, match=r"SN001_au12\.txt: line 2: '2,7'"):
        read("disfa", root, frame_offset=-1)
    (folder / "SN001_au12.txt").write_text("1,0\n3,2\n")
    found = read("disfa", root, frame_offset=-1)
    assert Dropped("frame is not in the file of every unit", "SN001 frame 2") in found
    (folder / "SN001_au12.txt").unlink()
    with pytest.raises(UserError, match="SN001: no label file of AU12"):
        read("disfa", root, frame_offset=-1)


def test_disfa_warns_of_the_poor_landmarks(tmp_path):
    disfa.write_labels(tmp_path, "SN029")
    found = get_source("disfa").detect(tmp_path)
    assert any("SN029" in note and "4330-4536" in note for note in found.notes)
    assert "decoded frames (SN001/0.png)" in found.missing


def test_disfa_without_frames(tmp_path):
    disfa.write_labels(tmp_path, "SN001")
    with pytest.raises(UserError, match="ffmpeg"):
        read("disfa", tmp_path, frame_offset=0)
    with pytest.raises(UserError, match="no ActionUnit_Labels"):
        read("disfa", tmp_path / "ActionUnit_Labels" / "SN001", frame_offset=0)
    assert get_source("disfa").detect(tmp_path).missing == (
        "ActionUnit_Labels: 1 of 27 people",
        "decoded frames (SN001/0.png)",
    )


@pytest.mark.parametrize(
    ("source", "people", "folds"),
    [
        ("disfa", 27, ["3fold-ge2", "3fold-ge1", "3fold-12au"]),
        ("bp4d", 41, ["3fold-occ", "3fold-int"]),
    ],
)
def test_folds_cover_everyone_once_and_test_each_part_once(source, people, folds):
    for family in folds:
        tested = []
        for fold in (1, 2, 3):
            settings = get_source(source).protocols[f"{source}/{family}-fold{fold}"].settings
            everyone = [person for part in settings["parts"].values() for person in part]
            assert len(everyone) == len(set(everyone)) == people
            tested += settings["test"]
        assert sorted(tested) == sorted(settings["parts"])


# --- DISFA+


def test_disfaplus_people_are_people_of_disfa(tmp_path):
    """One subject name in both sources: a person on both sides is a leak every check sees."""
    found = records(read("disfaplus", written("disfaplus", tmp_path)))
    assert {row.subject for row in found} == {"disfa_SN001"}
    parts = get_source("disfa").protocols["disfa/without-disfaplus"].settings["parts"]
    assert not set(parts["others"]) & set(SN_OF_DISFAPLUS)
    assert len(parts["others"]) == 27 - len(SN_OF_DISFAPLUS)


def test_disfaplus_other_pictures_and_missing_ones(tmp_path):
    root = written("disfaplus", tmp_path)
    (first, *_) = records(read("disfaplus", root, images="Aligned"))
    assert first.image.endswith("Aligned/SN001/A1_AU1_TrailNo_1/000.jpg")
    assert get_source("disfaplus").detect(root / "Labels").missing == ("Labels: 1 of 9 people",)
    (root / "Labels" / "SN001" / "A1_AU1_TrailNo_1" / "AU9.txt").unlink()
    with pytest.raises(UserError, match="TrailNo_1: no label file of AU9"):
        read("disfaplus", root)


# --- BP4D


def test_bp4d_probes_the_digits_of_each_folder(tmp_path):
    found = {
        row.id: Path(row.image).name for row in records(read("bp4d", written("bp4d", tmp_path)))
    }
    assert found["bp4d_F001_T1_0018"] == "0018.jpg"
    assert found["bp4d_M009_T8_0007"] == "007.jpg"


def test_bp4d_names_the_header_and_what_is_missing(tmp_path):
    root = written("bp4d", tmp_path)
    found = get_source("bp4d").detect(root / "AUCoding" / "AU_OCC")
    assert "numbered columns" in found.name
    assert found.missing == ("AUCoding/AU_OCC: 3 of 328 files",)
    (root / "AUCoding" / "AU_OCC" / "F001_T1.csv").unlink()
    assert "unit names" in get_source("bp4d").detect(root).name


@pytest.mark.parametrize("row", ["18,1", "x" + ",0" * 99, "18" + ",2" * 99])
def test_bp4d_malformed_rows_are_named(tmp_path, row):
    path = written("bp4d", tmp_path) / "AUCoding" / "AU_OCC" / "F001_T1.csv"
    path.write_text(",".join(map(str, range(100))) + f"\n{row}\n")
    with pytest.raises(UserError, match=r"F001_T1\.csv: row 2 is no frame with 99 codes"):
        read("bp4d", tmp_path)


def test_bp4d_columns_and_unit_files_must_be_there(tmp_path):
    root = written("bp4d", tmp_path)
    (root / "AUCoding" / "AU_INT" / "AU12" / "F001_T1_AU12.csv").unlink()
    with pytest.raises(UserError, match=r"F001_T1_AU12\.csv: no such file"):
        read("bp4d", root, "bp4d/3fold-int-fold1")
    (root / "AUCoding" / "AU_OCC" / "F001_T1.csv").write_text("1,1,2,4\n7,0,0,0\n")
    with pytest.raises(UserError, match=r"F001_T1\.csv: no column of AU6"):
        read("bp4d", root)


# --- EmotioNet


def test_emotionet_pictures_flat_and_nested(tmp_path):
    root = written("emotionet", tmp_path)
    first, second = records(read("emotionet", root))
    assert first.image == str(root / "imgs" / "N_0000000001" / "N_0000000001_00001.jpg")
    assert second.image == str(root / "imgs" / "N_0000000002_00007.jpg")
    assert get_source("emotionet").detect(root).name == "EmotioNet FACS table"


def test_emotionet_older_lists(tmp_path):
    cells = ["http://a/N_0000000003_00001.jpg", "http://b", *("0" * 60)]
    cells[2 + 11] = "1"  # AU12 is the twelfth unit
    cells[2 + 4] = "999"
    (tmp_path / "dataFile_0001.txt").write_text("\t".join(cells) + "\n")
    assert get_source("emotionet").detect(tmp_path).missing
    (row,) = read("emotionet", tmp_path)
    units = row.labels["action_units"]
    assert [unit for unit, active in units.items() if active] == ["AU12"]
    assert "AU5" not in units
    assert "AU51" not in units


def test_emotionet_errors_name_file_and_row(tmp_path):
    path = tmp_path / "EmotioNet_FACS.csv"
    path.write_text("URL,URL orig,'AU 1'\nhttp://a/b.jpg,x,9\n")
    with pytest.raises(UserError, match=r"FACS\.csv: row 2: '9' for AU1 is no code 0, 1 or 999"):
        read("emotionet", tmp_path)
    path.write_text("URL,URL orig,'AU 1'\nhttp://a/b.jpg,x\n")
    with pytest.raises(UserError, match="row 2 has 2 cells"):
        read("emotionet", path)
    path.write_text("address,AU 1\n")
    with pytest.raises(UserError, match="no columns URL"):
        read("emotionet", path)
    path.rename(tmp_path / "EmotioNet_FACS.xlsx")
    with pytest.raises(UserError, match="save it as csv"):
        read("emotionet", tmp_path)


# --- RAF-AU


def test_sided_units_fold_by_name():
    """OpenGraphAU folds by position and makes L12 a nasolabial deepener (AU11)."""
    labels = [
        (parse_sided_unit(text)[0].label, parse_sided_unit(text)[1]) for text in ("L12", "R1")
    ]
    assert labels == [("AU12", "left"), ("AU1", "right")]
    assert parse_sided_unit("12") == (action_units()[12], None)
    sided = [unit.number for unit in action_units().values() if unit.one_sided]
    assert sided == [1, 2, 4, 6, 10, 12, 14]
    with pytest.raises(UserError, match="not a FACS action unit"):
        parse_sided_unit("L99")


def test_sides_are_a_checked_label():
    assert validate_labels({"action_unit_sides": {"AU12": "left"}}) == []
    (problem,) = validate_labels({"action_unit_sides": {"AU12": "L"}})
    assert "not one of left, right" in problem
    (problem,) = validate_labels({"action_unit_sides": {"L12": "left"}})
    assert "not a FACS action unit" in problem


@pytest.mark.parametrize("line", ["0009.jpg", "0009.jpg 1+smile", "0009 1", "0009.jpg 1++2"])
def test_rafau_malformed_lines_are_named(tmp_path, line):
    root = written("rafau", tmp_path)
    with (root / "RAFAU_label.txt").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=r"RAFAU_label\.txt: line 6"):
        read("rafau", root)


def test_rafau_pictures(tmp_path):
    root = written("rafau", tmp_path)
    assert records(read("rafau", root))[-1].image.endswith("aligned/0004_aligned.jpg")
    (row, *_) = records(read("rafau", root, images="original"))
    assert row.image.endswith("original/0001.jpg")


# --- Aff-Wild2


def test_affwild2_finds_the_action_units_among_the_tasks(tmp_path):
    root = written("affwild2_au", tmp_path)
    found = get_source("affwild2_au").detect(root)
    assert found.notes == ("annotations in Third ABAW Annotations/AU_Detection_Challenge",)
    assert found.missing == ()
    with pytest.raises(UserError, match="no Train_Set folder whose files begin with AU1"):
        read("affwild2_au", root / "cropped_aligned")


def test_affwild2_malformed_rows_are_named(tmp_path):
    root = written("affwild2_au", tmp_path)
    (path,) = root.rglob("1-30.txt")
    path.write_text("AU1,AU2\n0,1\n0,2\n")
    with pytest.raises(UserError, match=r"1-30\.txt: row 3 is not 2 codes"):
        read("affwild2_au", root)
