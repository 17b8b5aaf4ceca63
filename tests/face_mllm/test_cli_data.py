"""``face-mllm data``: a table of photographs to a dataset, looked at and checked."""

import csv

import pytest
import yaml
from PIL import Image

from face_mllm.cli import main


@pytest.fixture
def photographs(tmp_path):
    """A folder with a table of twelve people, as a user would have it."""
    root = tmp_path / "photographs"
    root.mkdir()
    with (root / "faces.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "person", "feeling"])
        for number in range(12):
            picture = Image.effect_noise((64, 64), 40 + number).convert("RGB")
            picture.save(root / f"{number}.png")
            writer.writerow([f"{number}.png", f"p{number}", ("happiness", "anger")[number % 2]])
    return root


@pytest.fixture
def recipe(photographs, tmp_path):
    columns = {"image": "picture", "subject": "person", "expression": "feeling"}
    source = {"source": "table", "root": str(photographs / "faces.csv"), "columns": columns}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, "sources": [source]}))
    return path


def test_table_to_dataset_to_sheet(recipe, tmp_path, capsys):
    out, sheet = tmp_path / "qa", tmp_path / "qa.html"
    assert main(["data", "build", str(recipe), "--out", str(out), "seed=3"]) == 0
    assert (out / "manifest.json").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert main(["data", "check", str(out)]) in (0, 1)
    assert main(["data", "show", str(out), "-n", "2"]) == 0
    assert "expression" in capsys.readouterr().out.lower()
    assert main(["data", "show", str(out), "--html", str(sheet)]) == 0
    assert "<html" in sheet.read_text()


def test_sources_are_listed(capsys):
    assert main(["data", "sources"]) == 0
    assert "table" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, words",
    [
        ("sources.0.root=absent", "absent"),
        ("sources.0.source=tabel", "'table'"),
        ("sources.0.colums={}", "columns"),
        ("seed=many", "expected a whole number"),
    ],
)
def test_bad_recipes_leave_nothing(recipe, tmp_path, capsys, override, words):
    out = tmp_path / "qa"
    assert main(["data", "build", str(recipe), "--out", str(out), override]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line
    assert not out.exists()
    assert list(tmp_path.glob(".qa.partial*")) == []


def test_corrupt_picture_is_counted_and_a_used_folder_refused(
    photographs, recipe, tmp_path, capsys
):
    (photographs / "3.png").write_bytes(b"not a picture")
    out = tmp_path / "qa"
    assert main(["data", "build", str(recipe), "--out", str(out)]) == 0
    assert "dropped" in capsys.readouterr().out
    assert main(["data", "build", str(recipe), "--out", str(out)]) == 2
    assert "already holds files" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_folder_that_is_no_dataset(verb, tmp_path, capsys):
    assert main(["data", verb, str(tmp_path)]) == 2
    assert " -> " in capsys.readouterr().err.splitlines()[-1]
