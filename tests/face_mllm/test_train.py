"""Stages through the real training code on tiny models: chain, freezing, resume, artifact."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.records import FaceRecord, load_split
from face_mllm.artifact import read_artifact
from face_mllm.chat import FaceMLLM
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.scoring import LikelihoodScorer
from face_mllm.train import run_folder, train


def stage(tiny_parts, tiny_data, out, **changes):
    settings = {
        "stage": "stage1_align",
        "data": tiny_data,
        "out": out,
        "precision": "fp32",
        "vision": {"model": str(tiny_parts / "vision")},
        "llm": {"model": str(tiny_parts / "llm")},
        "max_steps": 4,
        "faces_per_device": 2,
        "learning_rate": 1e-2,
        "log_steps": 1,
    }
    return StageConfig.model_validate({**settings, **changes})


LORA = {"train": "lora", "lora": {"r": 8, "alpha": 32}}


@pytest.fixture(scope="module")
def chain(tiny_parts, tiny_data, tmp_path_factory):
    """Three stages, each from the one before."""
    root = tmp_path_factory.mktemp("chain")
    train(stage(tiny_parts, tiny_data, root / "s1"))
    later = {"vision": {}, "system": None}
    for number, name in ((2, "stage2_vqa"), (3, "stage3_face")):
        train(
            stage(
                tiny_parts,
                tiny_data,
                root / f"s{number}",
                stage=name,
                llm=LORA,
                init_from=root / f"s{number - 1}",
                max_steps=60,
                faces_per_device=8,
                **later,
            )
        )
    return root


def test_stage1_trains_the_projector_only(chain, tiny_parts):
    assert (chain / "s1" / "projector.safetensors").exists()
    assert not (chain / "s1" / "adapter_model.safetensors").exists()


def test_lora_touches_the_llm_and_never_the_vision_tower(chain):
    adapter = load_file(chain / "s3" / "adapter_model.safetensors")
    assert adapter
    assert all("language_model." in name and "vision" not in name for name in adapter)


def test_chain_records_every_stage_and_losses_fall(chain):
    artifact = read_artifact(chain / "s3")
    assert [entry["stage"] for entry in artifact.chain] == [
        "stage1_align",
        "stage2_vqa",
        "stage3_face",
    ]
    assert all(entry["protocols"] == {"toy": "toy/all"} for entry in artifact.chain)
    assert "toy/all" in (chain / "s3" / "README.md").read_text()
    assert artifact.chain[1]["last_loss"] < 0.5 * artifact.chain[1]["first_loss"]
    lines = [json.loads(x) for x in (chain / "s3" / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 60


def test_artifact_answers_what_it_was_taught_and_reloads_to_the_same_digits(chain, tiny_data):
    first = LikelihoodScorer.from_artifact(chain / "s3", "fp32")
    again = LikelihoodScorer.from_artifact(chain / "s3", "fp32")
    right = 0
    for row in load_split(tiny_data, "test"):
        record = FaceRecord.from_row(row)
        asked = [("Is AU12 active?", ("yes", "no"))]
        one = first.score(record.open_image(), asked)[0]
        assert (one == again.score(record.open_image(), asked)[0]).all()
        right += (one[0] > one[1]) == (record.qa[0].answer == "yes")
    assert right == 8


def test_ask_and_score_through_the_public_class(chain, tiny_data):
    model = FaceMLLM.from_pretrained(chain / "s3", "fp32")
    record = FaceRecord.from_row(load_split(tiny_data, "test")[1])
    chances = model.score(record.open_image(), "Is AU12 active?", ["yes", "no"])
    assert sum(chances.values()) == pytest.approx(1)
    assert model.ask(record.open_image(), "Is AU12 active?") == "yes"


def test_interrupted_run_resumes_to_the_same_weights(tiny_parts, tiny_data, tmp_path):
    llm = {**LORA, "model": str(tiny_parts / "llm")}
    settings = {"llm": llm, "save_steps": 2, "max_steps": 6}
    train(stage(tiny_parts, tiny_data, tmp_path / "whole", **settings))

    class KilledError(Exception):
        pass

    def kill(step, steps, text):
        if step == 5:
            raise KilledError

    broken = stage(tiny_parts, tiny_data, tmp_path / "broken", **settings)
    with pytest.raises(KilledError):
        train(broken, kill)
    assert not broken.out.exists()
    half = run_folder(broken) / "checkpoint-6"
    half.mkdir()  # what a kill inside a save leaves behind
    seen = []
    train(broken, lambda step, steps, text: seen.append(step))
    assert seen == [5, 6]
    for name in ("projector.safetensors", "adapter_model.safetensors"):
        one, two = load_file(tmp_path / "whole" / name), load_file(broken.out / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_resumed_run_takes_the_rate_it_is_told(tiny_parts, tiny_data, tmp_path):
    """After a NaN the remedy is a lower rate, and the same command goes on with it."""
    settings = {"save_steps": 2, "schedule": "linear", "warmup": 0.0}

    def kill(step, steps, text):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stage(tiny_parts, tiny_data, tmp_path / "a", **settings), kill)
    lower = stage(tiny_parts, tiny_data, tmp_path / "a", **settings, learning_rate=1e-4)
    train(lower)
    lines = [json.loads(x) for x in (lower.out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-4, 0.25e-4])


def test_weights_that_the_last_step_broke_are_in_no_artifact(tiny_parts, tiny_data, tmp_path):
    """The loss of the last step was still finite, so only the weights tell."""
    config = stage(tiny_parts, tiny_data, tmp_path / "a", max_steps=2, learning_rate=1e38)
    with pytest.raises(UserError, match=r"no longer finite at step 2.*lower learning_rate"):
        train(config)
    assert not config.out.exists()


def test_accumulation_gives_the_same_step(tiny_parts, tiny_data, tmp_path):
    one = stage(tiny_parts, tiny_data, tmp_path / "a", faces_per_device=4, max_steps=1)
    two = stage(
        tiny_parts, tiny_data, tmp_path / "b", faces_per_device=1, accumulation=4, max_steps=1
    )
    train(one)
    train(two)
    losses = [read_artifact(c.out).chain[0]["first_loss"] for c in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"data": "nowhere"}, "not a built dataset"),
        ({"init_from": "nowhere"}, "not a face_mllm artifact"),
        ({"llm": {"model": "MISSING", "train": "lora"}}, "MISSING"),
        ({"tasks": {"head_pose": 1.0}}, "no question of tasks"),
        ({"projector": {"train": "frozen"}}, "nothing would train"),
        (
            {"vision": {"model": "VISION", "train": "lora", "lora": {"targets": ["nope"]}}},
            "match no",
        ),
        ({"llm": {"model": "LLM", "train": "lora", "lora": {"targets": ["nope"]}}}, "match no"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    tiny_parts, tiny_data, tmp_path, changes, words
):
    places = {"LLM": str(tiny_parts / "llm"), "VISION": str(tiny_parts / "vision")}
    for part in ("llm", "vision"):
        if part in changes and "model" in changes[part]:
            model = changes[part]["model"]
            changes = {**changes, part: {**changes[part], "model": places.get(model, model)}}
    config = stage(tiny_parts, tiny_data, tmp_path / "out", **changes)
    with pytest.raises(UserError, match=words):
        train(config)
    assert not config.out.exists()


def test_projector_of_another_model_is_refused(chain, tiny_parts, tmp_path, make_model):
    from face_mllm.artifact import load_weights

    model, _ = make_model("resnet", "llama")
    model.projector = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(UserError, match="another model"):
        load_weights(model, read_artifact(chain / "s1"), chain / "s1")


def test_changed_base_weights_are_refused(chain, tiny_parts, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(chain / "s1", copy)
    info = json.loads((copy / "stage.json").read_text())
    info["bases"]["llm_fingerprint"] = "0" * 64
    (copy / "stage.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="not the model this artifact was trained on"):
        LikelihoodScorer.from_artifact(copy, "fp32")


def test_stage_on_data_with_other_held_out_attributes_is_refused(
    chain, tiny_parts, tiny_data, tmp_path
):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    (other / "manifest.json").write_text('{"holdout_attributes": []}')
    config = stage(tiny_parts, other, tmp_path / "out", init_from=chain / "s1", vision={}, llm=LORA)
    with pytest.raises(UserError, match="hold out"):
        train(config)
