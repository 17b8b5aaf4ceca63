"""An expert on paper: its sizes, the stages before it not run, what would fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from exp_clip_doubles import write_clip as write_text_clip
from joined_faces import TEACHER, WIDTH, write_exp_clip, write_faces, write_mask_fer
from mask_fer_faces import write_clip
from safetensors.torch import load_file
from test_train import stage

from data_pipeline.records import FaceRecord, load_split
from face_mllm.cli import main
from face_mllm.config import StageConfig
from face_mllm.configio import find_config, load_yaml_model
from face_mllm.experts.exp_clip.artifact import load_exp_clip
from face_mllm.experts.joined.expert import open_expert
from face_mllm.experts.joined.preflight import outline_of
from face_mllm.hardware import for_precision
from face_mllm.plan import plan
from face_mllm.stages import apply_freeze
from face_mllm.train import assemble
from face_mllm.validate import validate


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("preflight")
    write_faces(root / "data")
    clip = write_clip(root / "clip", image_processor, WIDTH)
    write_mask_fer(root / "resnet", clip, root / "data")
    write_mask_fer(root / "patches", clip, root / "data", kind="patch_head")
    write_text_clip(root / "text_clip")
    write_exp_clip(root / "exp_clip", root / "text_clip")
    return root


def full_size(*overrides):
    config = load_yaml_model("stage3_expert", StageConfig, overrides)
    return plan(config, find_config("stage3_expert").parent, "bfloat16", "sdpa")


def projector(width, llm):
    """Norm and two layers with biases."""
    return 2 * width + (width + 1) * llm + (llm + 1) * llm


def test_the_full_size_stage_counts_token_and_head():
    sheet, start = full_size()
    rows = {row.part: row for row in sheet.table}
    assert rows["expert"].trainable == projector(512, 4096)
    resnet18, classifier = 11_176_512, 7 * (512 + 1)
    assert rows["expert_head"].trainable == resnet18 + classifier
    assert start.expert.outline.source == "mask_fer.yaml, not run yet"
    assert all(parameter.is_meta for parameter in sheet.model.parameters())
    plain = full_size("expert=")[0]
    assert [row.part for row in plain.table] == ["vision", "projector", "llm"]
    assert sheet.load.tokens == plain.load.tokens + 1
    trained = rows["expert"].trainable + rows["expert_head"].trainable
    assert sheet.weights.gradients - plain.weights.gradients == 4 * trained


def test_every_experts_recipe_is_found_by_the_folder_it_writes():
    shipped = find_config("stage3_expert").parent
    found = outline_of(Path("runs/exp_clip_b32"), shipped)
    assert (found.kind, found.width) == ("exp_clip", 4096)
    assert [tuple(p.shape) for p in found.head.parameters()] == [(4096, 512)]
    found = outline_of(Path("runs/mask_fer_rafdb_l14"), shipped)
    assert (found.width, found.source) == (768, "mask_fer_rafdb_l14.yaml, not run yet")


@pytest.mark.parametrize("name", ["resnet", "patches", "exp_clip"])
@pytest.mark.parametrize("head", ["frozen", "full"])
def test_on_paper_a_written_expert_is_as_large_as_in_the_model(
    place, tiny_parts, tmp_path, name, head
):
    given = {"model": str(place / name), "token": True, "head": head}
    config = stage(tiny_parts, place / "data", tmp_path / "out", expert=given)
    sheet, start = plan(config, tmp_path, "float32", "eager")
    model = assemble(config, for_precision("fp32"))[1]
    assert sheet.table == apply_freeze(model, config)
    assert start.expert.outline.width == (TEACHER if name == "exp_clip" else WIDTH)
    paper = {k: v.shape for k, v in sheet.model.named_parameters() if k.startswith("expert")}
    assert paper == {k: v.shape for k, v in model.named_parameters() if k.startswith("expert")}


def test_a_later_stage_inherits_what_an_earlier_config_joins(place, tmp_path, capsys):
    """Neither the expert nor the stage that joins it has been trained."""
    shipped = find_config("embedded/stage3_expert").parent
    for path in shipped.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    later = yaml.safe_load((shipped / "stage3_expert.yaml").read_text())
    changes = {"stage": "later", "out": "runs/later", "init_from": later["out"]}
    for name, expert in (("later", {"text": True}), ("dropped", {"token": False, "fusion": False})):
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({**later, **changes, "expert": expert})
        )
    validate(tmp_path / "later.yaml", meta=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "mask_fer (mask_fer.yaml, not run yet), 7 classes, vectors of 128" in said
    assert "joined by token, text, fusion; tokens a face: +17" in said
    validate(tmp_path / "dropped.yaml", meta=True)
    assert "mask_fer" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["expert.model=runs/nowhere"], "no config beside this one writes it"),
        (["expert.text=true"], "needs head: frozen"),
        (["expert.token=false"], "set expert.token: true"),
        (["expert.model="], "set expert.model to the expert's folder"),
        (["expert.loss_weight=0"], "expert.loss_weight"),
    ],
)
def test_what_would_fail_later_fails_now(overrides, words, capsys):
    assert main(["validate", "stage3_expert", "--meta", *overrides]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_beside_its_data_an_expert_that_leaks_is_refused_and_a_good_one_runs_a_batch(
    place, tiny_parts, tmp_path, capsys
):
    settings = {
        "stage": "s", "data": str(place / "data"), "out": str(tmp_path / "out"),
        "precision": "fp32", "vision": {"model": str(tiny_parts / "vision")},
        "llm": {"model": str(tiny_parts / "llm")},
        "expert": {"model": str(place / "resnet"), "token": True, "head": "full"},
    }  # fmt: skip
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(settings))
    validate(path, gpus=(1,))
    said = " ".join(capsys.readouterr().err.split())
    assert f"vectors of {WIDTH}" in said
    assert "separation + 5 diversity) weighs 0.1 of a labelled face's answers" in said
    assert "one batch forward and backward" in said
    leaking = ["expert.head=frozen", "expert.text=true", "llm.model=lmsys/vicuna-7b-v1.5"]
    assert main(["validate", str(path), *leaking]) == 2  # though its models are not here
    assert "surer than on any new face" in " ".join(capsys.readouterr().err.split())


def test_an_exp_clip_is_named_with_its_clip_and_as_many_classes_as_asked(
    place, tiny_parts, tmp_path
):
    given = {"model": str(place / "exp_clip"), "token": True, "classes": 8}
    config = stage(tiny_parts, place / "data", tmp_path / "out", expert=given)
    (line,) = plan(config, tmp_path, "float32", "eager")[1].expert.words(config.expert)
    assert "8 classes" in line
    assert str(place / "text_clip") in line


def test_a_released_checkpoint_becomes_an_expert_to_be_joined(place, tmp_path, capsys):
    weight = load_file(place / "exp_clip" / "exp_clip.safetensors")["mlp.weight"]
    path, out = tmp_path / "ExpCLIP.pth", tmp_path / "adopted"
    torch.save({"state_dict": {"module.mlp.weight": weight}}, path)
    given = ["--model", str(path), "--clip", str(place / "text_clip"), "--out", str(out)]
    assert main(["exp-clip", "adopt", *given]) == 0
    face = FaceRecord.from_row(load_split(place / "data", "train")[0]).open_image()
    alone = load_exp_clip(path, str(place / "text_clip"))
    torch.testing.assert_close(
        open_expert(out).log_probabilities([face]), alone.log_probabilities([face])
    )
    torch.testing.assert_close(open_expert(out).look([face]).vectors, alone.vectors([face]))
    assert main(["exp-clip", "adopt", *given]) == 2  # in use
    torch.save({"mlp.weight": weight[:, :5]}, path)
    given[-1] = str(tmp_path / "narrow")
    assert main(["exp-clip", "adopt", *given]) == 2
    assert "5 numbers" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "narrow").exists()
