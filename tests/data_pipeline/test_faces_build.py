"""Faces cut from photographs in a build: counted, remembered, the same each time."""

from pathlib import Path

import pytest
import yaml
from drawn_faces import face_at, photograph, record
from PIL import Image

from data_pipeline.build import build
from data_pipeline.engine import outcome as outcome_module
from data_pipeline.faces import NO_FACES, FacePolicy
from data_pipeline.faces import crop as crop_module
from data_pipeline.faces import detector as detector_module
from data_pipeline.manifest import summary
from data_pipeline.recipe import load_recipe
from data_pipeline.records import iter_records, write_dataset
from face_mllm.errors import UserError


def in_photographs(image):
    """A stand-in detector: as many faces as the red of the first pixel says."""
    places = (face_at(50, 60, 100), face_at(0, 0, 40))
    return list(places[: image.getpixel((0, 0))[0]])


in_photographs.name = "known 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten photographs with 0, 1 or 2 faces, and one with a box."""
    monkeypatch.setattr(crop_module, "default_detector", lambda: in_photographs)
    with write_dataset(tmp_path / "photos") as writer:
        for number in range(11):
            image = photograph()
            image.putpixel((0, 0), (number % 3, 0, 0))
            box = (100.0, 100.0, 150.0, 150.0) if number == 10 else ()
            name = {"id": f"s_{number}", "subject": f"p{number}"}
            writer.add(record(image, box=box, **name))
    return tmp_path


def recipe(folder, sources=({"source": "records", "root": "photos"},), **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sources": list(sources), **changes}))
    return path


def test_a_build_cuts_counts_and_remembers(folder):
    manifest = build(recipe(folder, faces="detect"), folder / "out")
    assert manifest["faces"] == {"policy": "box-224-m0.1", **FacePolicy().model_dump()}
    (source,) = manifest["sources"]
    assert source["kept"] == {"train": 7}
    assert source["dropped"]["no face found"]["count"] == 4
    assert source["faces"] == {
        "policies": {"box-224-m0.1": 7},
        "found_by": {"known 1": 6, "source": 1},
        "not_cut_out": 0,
    }
    assert "faces: detect" not in summary(manifest)
    for found in iter_records(folder / "out"):
        assert found.crop["policy"] == "box-224-m0.1"
        assert found.open_image().size == (224, 224)
    assert "box-224-m0.1" in (folder / "out" / "README.md").read_text()


def test_the_same_build_again_gives_the_same_bytes(folder):
    path = recipe(folder, faces={"align": "eyes", "several": "all", "size": 64})
    for name in ("a", "b"):
        build(path, folder / name)
    shards = [(folder / name / "train-00000.parquet").read_bytes() for name in ("a", "b")]
    assert shards[0] == shards[1]
    ids = [found.id for found in iter_records(folder / "a")]
    assert ids[:3] == ["s_1_f0", "s_2_f0", "s_2_f1"]


def test_a_source_can_have_its_own_policy(folder):
    cropped = [{"source": "records", "root": "photos", "faces": "none"}]
    manifest = build(recipe(folder, cropped, faces="detect"), folder / "out")
    assert (manifest["faces"], manifest["sources"][0]["kept"]) == ("none", {"train": 11})
    assert manifest["sources"][0]["faces"]["not_cut_out"] == 1  # the one whose box is known
    assert "1 faces lie in larger pictures: `faces: detect`" in " ".join(summary(manifest).split())


def test_a_dataset_of_crops_keeps_its_policy_when_built_anew(folder):
    build(recipe(folder, faces={"align": "eyes", "margin": 0.3}), folder / "crops")
    again = build(recipe(folder, [{"source": "records", "root": "crops"}]), folder / "out")
    assert again["faces"]["policy"] == "eyes-224-m0.3"


def test_the_first_faces_are_as_many_as_asked_for_with_several_in_a_photograph(folder):
    sources = [{"source": "records", "root": "photos", "take": "first:2"}]
    manifest = build(recipe(folder, sources, faces={"several": "all"}), folder / "out")
    assert manifest["sources"][0]["kept"] == {"train": 2}
    assert [found.id for found in iter_records(folder / "out")] == ["s_1_f0", "s_2_f0"]


def test_crops_keep_the_size_of_their_policy_where_pictures_are_saved_anew(folder):
    with write_dataset(folder / "more") as writer:
        writer.add(record(id="t_1", subject="q"))
    sources = [
        {"source": "records", "root": "photos"},
        {"source": "records", "root": "more", "faces": "none"},
    ]
    images = {"reencode": {"side": 50}}
    build(recipe(folder, sources, faces={"size": 96}, images=images), folder / "out")
    sides = {(found.id[0], found.open_image().size) for found in iter_records(folder / "out")}
    assert sides == {("s", (96, 96)), ("t", (50, 50))}


@pytest.mark.skipif(bool(detector_module.missing_packages()), reason="pip install face-mllm[faces]")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_find_the_same_faces(tmp_path, monkeypatch, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="ray is not installed: pip install 'face-mllm[ray]'")
    monkeypatch.setattr(outcome_module, "ROWS_PER_CHUNK", 3)
    sheet = Image.open(Path(__file__).resolve().parents[2] / "docs" / "synthetic_faces.jpg")
    with write_dataset(tmp_path / "photos") as writer:
        for number in range(8):
            image = sheet.crop((number * 144, 0, number * 144 + 144 * (1 + number % 2), 144))
            writer.add(record(image, id=f"s_{number}", subject=f"p{number}"))
    path = recipe(tmp_path, faces={"align": "eyes", "several": "all", "size": 64})
    alone = build(path, tmp_path / "alone")
    assert alone == build(path, tmp_path / "two", workers=2, engine=engine)
    shards = [(tmp_path / name / "train-00000.parquet").read_bytes() for name in ("alone", "two")]
    assert shards[0] == shards[1]
    (detector,) = alone["sources"][0]["faces"]["found_by"]
    assert detector.startswith("centerface")
    assert alone["splits"]["train"]["faces"] >= 8


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"faces": "detct"}, "'faces.mode' is 'detct'"),
        ({"faces": {"margn": 1}}, "did you mean 'margin'"),
        ({"faces": "detect", "images": "link"}, "images: embed"),
        ({"faces": {"several": "first"}}, "'faces.several' is 'first'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(folder, changes, said):
    with pytest.raises(UserError, match=said):
        load_recipe(recipe(folder, **changes))


def test_options_can_be_set_on_the_command_line(folder):
    loaded = load_recipe(recipe(folder), ["faces.margin=0.4", "sources.0.faces=none"])
    assert (loaded.recipe.faces.margin, loaded.recipe.faces.mode) == (0.4, "detect")
    assert loaded.sources[0].faces == NO_FACES
