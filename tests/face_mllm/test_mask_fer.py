"""mask-FER end to end on tiny pictures: train, go on, load, measure across datasets."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mask_fer_faces import COUNTS, write_clip, write_expressions
from safetensors.torch import load_file

from data_pipeline.records import load_split
from eval.results import Estimate
from face_mllm.cli import main
from face_mllm.errors import UserError
from face_mllm.experts import preflight
from face_mllm.experts.loading import load_expert
from face_mllm.experts.mask_fer import MaskFerExpert
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.evaluate import Measured, class_map, cross_dataset, evaluate
from face_mllm.experts.mask_fer.faces import load_training
from face_mllm.experts.mask_fer.train import Run, train_mask_fer
from face_mllm.hardware import for_precision
from face_mllm.validate import validate

SMALL = {
    "seed": 1,
    "classes": ["neutral", "happiness", "anger"],
    "mask": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "epochs": 4,
    "batch_size": 9,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "save_steps": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("mask_fer")
    write_expressions(root / "toy")
    write_expressions(root / "other", {"train": 3, "test": 24}, 5, "other", shift=12)
    write_clip(root / "clip", image_processor)
    return root


@pytest.fixture
def settings(place, tmp_path):
    def make(out="out", **changes):
        clip = {"model": str(place / "clip"), **changes.pop("clip", {})}
        given = {"data": place / "toy", "out": tmp_path / out, "clip": clip}
        return MaskFerConfig.model_validate({**SMALL, **given, **changes})

    return make


@pytest.fixture
def train(settings, place):
    def run(out="out", **changes):
        return train_mask_fer(settings(out, **changes), lambda *_: None, place / "cache")

    return run


def weights(folder):
    return load_file(folder / "mask_fer.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def images(place, split="test"):
    from data_pipeline.records import FaceRecord

    return [FaceRecord.from_row(row).open_image() for row in load_split(place / "toy", split)][:12]


@pytest.mark.parametrize("kind", ["resnet", "patch_head", "none"])
@pytest.mark.parametrize("features", ["online", "cached"])
def test_training_learns_what_the_pictures_show(train, place, kind, features):
    mask = {**SMALL["mask"], "kind": kind}
    folder = train(mask=mask, clip={"features": features}, epochs=14)
    log = lines(folder)
    assert len(log) == 14
    assert np.mean([line["classification"] for line in log[-3:]]) < log[0]["classification"]
    best = max(line["val_uar"] for line in log)
    assert best > 0.6
    expert = MaskFerExpert.from_pretrained(folder)
    answers = expert.log_probabilities(images(place, "val"))
    torch.testing.assert_close(answers.exp().sum(-1), torch.ones(12))
    right = (answers.argmax(-1) == torch.arange(12) % 3).float().mean()
    assert right.item() == pytest.approx(best)  # the kept epoch is the best on val
    assert expert.vectors(images(place)).shape == (12, 24)


def test_the_artifact_is_safetensors_and_json_and_loads_alone(train, place):
    folder = train(logits_from="mean")
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".safetensors", ".json", ".jsonl", ".md"}
    info = json.loads((folder / "mask_fer.json").read_text())
    assert info["classes"] == ["neutral", "happiness", "anger"]
    assert info["training"]["left_out"] == {"contempt": 1, "unlabelled": 1}
    assert info["training"]["class_counts"] == [12, 12, 12]
    assert "The test split was not opened." in (folder / "README.md").read_text()
    first = MaskFerExpert.from_pretrained(folder)
    moved = shutil.copytree(folder, folder.with_name("moved"))
    second = load_expert(moved)
    assert second.width == first.vectors(images(place)).shape[1]
    some = images(place)
    assert torch.equal(first.log_probabilities(some), second.log_probabilities(some))
    fc, separated, mean = (
        first.model.logits(first.vectors(some), kind).detach().log_softmax(-1)
        for kind in ("fc", "separated", "mean")
    )
    assert not torch.allclose(fc, separated)
    torch.testing.assert_close(first.log_probabilities(some), mean)
    (moved / "mask_fer.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"mask_fer.safetensors: missing or damaged"):
        MaskFerExpert.from_pretrained(moved)
    with pytest.raises(UserError, match="not a mask-FER artifact"):
        MaskFerExpert.from_pretrained(place)


def test_another_clip_is_refused(train, place, image_processor):
    folder = train(epochs=1)
    info = json.loads((folder / "mask_fer.json").read_text())
    info["clip"]["fingerprint"] = "0" * 64
    (folder / "mask_fer.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="not the CLIP this expert was trained on"):
        MaskFerExpert.from_pretrained(folder)
    with pytest.raises(UserError, match=r"its features are 24 wide, clip.width says 512"):
        train("wrong", clip={"width": 512})


def test_the_seed_decides_every_weight(train):
    one, again, other = train("a"), train("b"), train("c", seed=2)
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))
    shared, each = train("d", epochs=1), train("e", epochs=1, loss={"drop_per_sample": True})
    assert not same(weights(shared), weights(each))


def test_the_test_split_is_never_opened(train, place, tmp_path):
    bare = shutil.copytree(place / "toy", tmp_path / "bare")
    for shard in bare.glob("test-*"):
        shard.unlink()
    assert same(weights(train("with")), weights(train("without", data=bare)))


def test_without_a_val_split_subjects_of_train_are_held_out(place, tmp_path):
    bare = shutil.copytree(place / "toy", tmp_path / "bare")
    for shard in bare.glob("val-*"):
        shard.unlink()
    classes = ("neutral", "happiness", "anger")
    train, val = load_training(bare, classes, {}, 0.25)
    assert len(train) + len(val) == 36
    assert 3 <= len(val) <= 16
    assert not set(train.column("subject")) & set(val.column("subject"))
    assert len(val.targets) == len(val)
    with pytest.raises(UserError, match="no training face shows fear"):
        load_training(bare, (*classes, "fear"), {}, 0.25)


def test_an_interrupted_run_goes_on_to_the_same_weights(settings, place):
    whole = settings("whole", save_steps=1)
    faces = load_training(whole.data, whole.classes, {}, 0.1)
    hardware = for_precision("fp32")

    def run_of(config):
        run = Run(config, hardware, *faces, place / "cache")
        run.prepare()
        run.resume()
        return run

    def finish(run):
        while run.step < run.steps:
            run.advance()
        run.write()
        return weights(run.config.out)

    uninterrupted = finish(run_of(whole))
    broken = settings("broken", save_steps=1)
    run = run_of(broken)
    for _ in range(2 * run.per_epoch + 1):  # one step into the third epoch
        run.advance()
    later = run_of(broken)
    assert later.step == 2 * later.per_epoch
    assert same(uninterrupted, finish(later))
    assert lines(whole.out) == lines(broken.out)
    shutil.rmtree(broken.out)
    with pytest.raises(UserError, match="trained with other settings of batch_size"):
        run_of(settings("broken", batch_size=6))


def test_what_cannot_be_trained_says_so(train, place, settings):
    with pytest.raises(UserError, match="36 training faces"):
        train(batch_size=40)
    with pytest.raises(UserError, match="no train-"):
        train(data=place / "nowhere")
    with pytest.raises(UserError, match="already holds files"):
        train_mask_fer(settings().model_copy(update={"out": place}))


def test_measuring_across_datasets(train, place, tmp_path):
    folder = train(epochs=14)
    data, out = [place / "toy", place / "other"], tmp_path / "measured"
    found = evaluate(folder, data, out, cache=place / "cache")
    assert json.loads((out / "results.json").read_text()) == found
    assert {"model", "data", "seed", "versions", "results"} <= set(found)
    war = {e["data"]: e for e in found["results"] if (e["name"], e["metric"]) == ("all", "war")}
    toy, other = (war[str(root)] for root in data)
    assert (toy["trained_on"], other["trained_on"]) == (True, False)
    assert (toy["protocol"], other["protocol"]) == ("toy/official", "other/official")
    assert (toy["n"], other["n"]) == (COUNTS["test"], 24)
    assert toy["ci95"][0] <= toy["value"] <= toy["ci95"][1]
    assert toy["baselines"]["majority"] == pytest.approx(1 / 3)
    assert toy["shared"] == other["shared"] == []
    means = found["cross_dataset"]["war"]
    assert means["with_source"]["value"] == pytest.approx((toy["value"] + other["value"]) / 2)
    assert means["unseen"]["value"] == pytest.approx(other["value"])
    assert found["left_out"][str(data[1])] == {"contempt": 1, "unlabelled": 1}
    table = pd.read_parquet(out / "predictions.parquet")
    assert len(table) == COUNTS["test"] + 24
    right = (table["truth"] == table["prediction"])[table["data"] == str(data[0])].mean()
    assert right == pytest.approx(toy["value"])
    some = evaluate(folder, data, tmp_path / "some", limit=10, cache=place / "cache")
    few = pd.read_parquet(tmp_path / "some" / "predictions.parquet")
    assert some["limit"] == 10
    assert few.groupby("data").size().tolist() == [10, 10]
    both = few.merge(table, on=["data", "id"], suffixes=("", "_all"))
    assert len(both) == 20
    assert (both["prediction"] == both["prediction_all"]).all()
    remapped = evaluate(
        folder, data[1:], tmp_path / "r", remap={"contempt": "anger"}, cache=place / "cache"
    )
    assert {e["n"] for e in remapped["results"] if e["name"] == "all"} == {25}
    assert remapped["left_out"][str(data[1])] == {"unlabelled": 1}
    assert remapped["cross_dataset"]["uar"]["with_source"] is None


def test_means_in_closed_form():
    def measured(value, is_source):
        draws = np.array([value - 0.1, value, value + 0.1])
        figures = {("p", "expression", "all", "war"): Estimate(value, draws, 9, 0.0, 9)}
        return Measured(None, is_source, figures, {}, pd.DataFrame(), {})

    # the paper's RAF-DB row: 88.72 at home, the others unseen
    row = [(0.8872, True), (0.7316, False), (0.4586, False), (0.5286, False), (0.5680, False)]
    means = cross_dataset([measured(*cell) for cell in row], "war")
    assert means["with_source"]["value"] == pytest.approx(0.6348)
    assert means["unseen"]["value"] == pytest.approx(0.5717)
    assert (means["with_source"]["datasets"], means["unseen"]["datasets"]) == (5, 4)
    assert cross_dataset([measured(0.5, True)], "war")["unseen"] is None


def test_remaps_of_the_command_line():
    assert class_map(["contemptuous=Disgusted"]) == {"contempt": "disgust"}
    for wrong in ("contempt", "contempt=boredom"):
        with pytest.raises(UserError, match="--remap"):
            class_map([wrong])


def test_the_command_line(settings, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path / "cache"))
    config = settings("cli", epochs=1)
    path = tmp_path / "mask_fer.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["mask-fer", "train", str(path), "seed=4"]) == 0
    assert capsys.readouterr().out.strip() == str(config.out)
    assert main(["train", str(path), f"out={tmp_path / 'same'}", "seed=4"]) == 0
    assert same(weights(config.out), weights(tmp_path / "same"))
    both = ["--data", str(place / "toy"), "--data", str(place / "other")]
    argv = ["mask-fer", "eval", "--model", str(config.out), *both, "--out", str(tmp_path / "m")]
    assert main(argv) == 0
    assert (tmp_path / "m" / "results.json").is_file()
    assert main([*argv[:-1], str(tmp_path / "n"), "--logits-from", "nose"]) == 2
    assert "choose fc, separated, mean" in capsys.readouterr().err
    assert main(["mask-fer", "train", str(path), "epochz=1"]) == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mask_fer", "embedded/mask_fer"])
def test_shipped_configs_pass_validation(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "try_to_load_from_cache", lambda *_, **__: None)
    validate(name)
    said = capsys.readouterr().err
    assert "keys and types" in said
    assert "channels" in said
    assert "no such folder here" in said


def test_validation_reads_data_that_is_there(settings, place, tmp_path, capsys):
    path = tmp_path / "mask_fer.yaml"
    path.write_text(yaml.safe_dump(settings().model_dump(mode="json")))
    validate(path)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 classes of 8 channels, 0 left over" in said
    assert "36 training and 12 validation faces" in said
    with pytest.raises(UserError, match="no training face shows fear"):
        validate(path, ["classes=[neutral, happiness, anger, fear]"])
