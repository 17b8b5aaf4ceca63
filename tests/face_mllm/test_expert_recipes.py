"""The full-size recipes of the experts: shapes as published, data recipes that load."""

from pathlib import Path

import pytest

from data_pipeline.recipe import load_recipe
from face_mllm.validate import validate

STAGES = Path(__file__).resolve().parents[2] / "stage_configs"

# widths and weights of the released heads; channels a class of D // 7
SHAPES = {
    "exp_clip": "head 512 -> 4096, 2.10 M weights",
    "experts/exp_clip_b16": "head 512 -> 4096, 2.10 M weights",
    "experts/exp_clip_l14": "head 768 -> 4096, 3.15 M weights",
    "mask_fer": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_ferplus": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_affectnet": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_sfew": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_mma": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_rafdb_b16": "7 classes of 73 channels, 1 left over",
    "experts/mask_fer_rafdb_l14": "7 classes of 109 channels, 5 left over",
}


def test_every_shipped_recipe_is_listed_here():
    shipped = {f"experts/{path.stem}" for path in (STAGES / "experts").glob("*.yaml")}
    assert shipped | {"exp_clip", "mask_fer"} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_recipe_passes_the_preflight_without_its_models(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    validate(STAGES / f"{name}.yaml")
    said = " ".join(capsys.readouterr().err.split())
    assert SHAPES[name] in said
    assert "not loaded" in said


@pytest.mark.parametrize(
    "path", sorted((STAGES / "experts" / "data").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_data_recipe_names_a_known_source_and_protocol(path, tmp_path):
    load_recipe(path, [f"sources.0.root={tmp_path}"])


def test_exp_clip_preflight_reads_widths_and_counts_faces(tmp_path, capsys):
    from exp_clip_doubles import write_clip, write_faces

    clip, data = write_clip(tmp_path / "clip"), tmp_path / "data"
    write_faces(data)
    given = [f"clip={clip}", f"data=[{data}]", "clip_width=0", "batch_size=12"]
    validate(STAGES / "exp_clip.yaml", given)
    said = " ".join(capsys.readouterr().err.split())
    assert "joint space of 24" in said
    assert "head 24 -> 4096" in said
    assert "data: 24 faces, 10 steps" in said
