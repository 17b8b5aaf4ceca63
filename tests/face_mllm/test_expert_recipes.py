"""The full-size recipes of the experts: shapes as published, data recipes that load."""

import re
from pathlib import Path

import pytest

from data_pipeline.recipe import load_recipe
from face_mllm.configio import load_yaml_model
from face_mllm.experts.exp_clip import preflight as exp_clip_room
from face_mllm.experts.exp_clip.config import INSTRUCTION, ExpClipConfig
from face_mllm.experts.mask_fer import preflight as mask_fer_room
from face_mllm.experts.mask_fer.config import MaskFerConfig
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


# (batch, epochs, rate, decay) of the released runs, and what else decides them
HEAD = {
    "epochs": 5,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "seed": 1,
    "split": "train",
    "max_faces": 0,
}
MASK = {
    "epochs": 60,
    "batch_size": 32,
    "learning_rate": 2e-4,
    "weight_decay": 1e-4,
    "gamma": 0.9,
    "seed": 3407,
    "max_steps": -1,
    "logits_from": "fc",
    "classes": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
}
TOWERS = {
    "exp_clip": "openai/clip-vit-base-patch32",
    "experts/exp_clip_b16": "openai/clip-vit-base-patch16",
    "experts/exp_clip_l14": "openai/clip-vit-large-patch14",
    "experts/mask_fer_rafdb_b16": "openai/clip-vit-base-patch16",
    "experts/mask_fer_rafdb_l14": "openai/clip-vit-large-patch14",
}


@pytest.mark.parametrize("name", [name for name in SHAPES if "exp_clip" in name])
def test_a_head_s_recipe_has_the_published_numbers(name):
    config = load_yaml_model(name, ExpClipConfig)
    assert {key: getattr(config, key) for key in HEAD} == HEAD
    assert config.clip == TOWERS[name]
    assert (config.teacher.kind, config.teacher.width) == ("blip2", 4096)
    assert config.teacher.model == "Salesforce/blip2-flan-t5-xxl"
    assert config.teacher.instruction == INSTRUCTION
    assert config.paper_preprocess == (name != "exp_clip")


@pytest.mark.parametrize("name", [name for name in SHAPES if "mask_fer" in name])
def test_a_mask_fer_recipe_has_the_published_numbers(name):
    config = load_yaml_model(name, MaskFerConfig)
    assert {key: getattr(config, key) for key in MASK} == MASK
    loss, spoils = config.loss, config.augment
    assert (loss.separation, loss.diversity, loss.drop, loss.div_norm) == (1.5, 5, 0.137, "code")
    assert round(loss.drop * 73) == 10
    assert (spoils.noise, spoils.noise_variance, spoils.flip) == (0.5, 30, 0.5)
    assert (spoils.erase, spoils.erase_area) == (0.5, (0.02, 0.25))
    assert config.clip.model == TOWERS.get(name, "openai/clip-vit-base-patch32")
    assert config.clip.features == "online"
    assert (config.mask.kind, config.mask.weights) == ("resnet", "microsoft/resnet-18")
    assert config.paper_preprocess == (name != "mask_fer")


def test_means_beside_the_published_cells_are_theirs():
    """The printed one but AffectNet's, which the paper gets wrong and the page says so."""
    text = (STAGES.parent / "docs" / "mask_fer.md").read_text()
    rows = re.findall(r"^\| [\w-]+ \| \d\d\.\d\d \|.*$", text, re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        cells = [float(figure) for figure in re.findall(r"\d\d\.\d\d", row)]
        source, unseen, said = cells[0], cells[1:5], cells[5:]
        assert said[-1] == pytest.approx(sum(unseen) / 4, abs=0.0051)
        assert said[-2] == pytest.approx((source + sum(unseen)) / 5, abs=0.0051)


@pytest.mark.parametrize("name", ["embedded/exp_clip", "embedded/mask_fer", *SHAPES])
def test_meta_looks_at_the_config_alone(name, capsys, monkeypatch, tmp_path):
    def never(*_, **__):
        raise AssertionError("looked for a model or for data")

    for room in (exp_clip_room, mask_fer_room):
        monkeypatch.setattr(room, "here", never)
        monkeypatch.setattr(room, "FrozenClip" if room is exp_clip_room else "load_training", never)
    validate(STAGES / f"{name}.yaml", meta=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "models and data: not looked at" in said
    assert SHAPES.get(name, "given") in said


def test_the_preflight_downloads_no_embedded_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path))
    monkeypatch.setattr("face_mllm.references.smollm2_folder", None)
    monkeypatch.chdir(tmp_path)
    validate(STAGES / "embedded" / "exp_clip.yaml")
    said = " ".join(capsys.readouterr().err.split())
    assert "embedded:smollm2: not on this machine, so not loaded" in said
    assert "embedded:face-clip loads" in said


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
