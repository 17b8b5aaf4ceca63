"""Places that cannot be written are refused in a line, before anything is done."""

import os

import pytest

from data_pipeline.records import whole_folder
from face_mllm.cli import main
from face_mllm.errors import UserError
from face_mllm.outputs import check_file, check_out, whole_file, write_whole


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    return path


def test_new_and_empty_folders_are_fine(tmp_path, monkeypatch):
    check_out(tmp_path)
    check_out(tmp_path / "a" / "b")
    check_file(tmp_path / "a" / "x.html")
    monkeypatch.chdir(tmp_path)
    check_out("runs/x")
    check_file("x.html")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(tmp_path, file):
    with pytest.raises(UserError, match="already holds files"):
        check_out(tmp_path)
    for check in (check_out, check_file):
        with pytest.raises(UserError, match="file is a file, not a folder"):
            check(file / "below" / "it")
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_out(file)
    with pytest.raises(UserError, match="is a folder"):
        check_file(tmp_path)
    with pytest.raises(UserError, match="is a file"), whole_folder(file):
        pass


def test_a_file_is_whole_or_as_it_was(file):
    def halfway(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"), whole_file(file) as partial:
        halfway(partial)
    assert file.read_text() == "mine"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_leave_to_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="nothing may be written"):
        check_out(tmp_path / "x")


@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out"],
        ["data", "synth", "-n", "2", "--out"],
        ["data", "build", "embedded", "sources.0.root=DATA", "--out"],
        ["data", "annotate", "DATA", "--annotator", "artifact:DATA", "--yes", "--out"],
        ["export", "--merge", "--model", "DATA", "--out"],
        ["eval", "--model", "DATA", "--data", "DATA", "--out"],
        ["fuse", "--model", "DATA", "--data", "DATA", "--out"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_verb_says_so_in_a_line(words, below, file, tiny_data, capsys):
    words = [word.replace("DATA", str(tiny_data)) for word in words]
    assert main([*words, str(file / below)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {file} is a file, not a folder -> choose another folder"
    assert file.read_text() == "mine"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["stage1_align", "face_clip", "mask_fer", "exp_clip"])
@pytest.mark.parametrize("below", ["", "below"])
def test_training_says_so_before_it_begins(kind, below, file, tiny_data, capsys):
    data = tiny_data if kind in ("stage1_align", "mask_fer") else f"[{tiny_data}]"
    words = ["train", f"embedded/{kind}", f"data={data}", f"out={file / below}"]
    assert main(words) == 2
    assert "is a file, not a folder" in capsys.readouterr().err.splitlines()[-1]


def test_show_writes_no_sheet_over_a_folder(file, tiny_data, capsys):
    for place in (file.parent, file / "sheet.html"):
        assert main(["data", "show", str(tiny_data), "--html", str(place)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert [path.name for path in file.parent.iterdir()] == ["file"]
