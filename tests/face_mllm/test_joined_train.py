"""Stages with an expert through the real training code: switched, carried, continued, measured."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from joined_faces import WIDTH, write_clip, write_faces, write_mask_fer
from safetensors.torch import load_file
from test_train import LORA, stage

from data_pipeline.records import FaceRecord, load_split
from eval.run import evaluate
from face_mllm.artifact import read_artifact
from face_mllm.chat import FaceMLLM
from face_mllm.cli import main
from face_mllm.config import StageConfig
from face_mllm.describe import describe_images
from face_mllm.errors import UserError
from face_mllm.experts.joined import out_of_fold as room
from face_mllm.experts.joined.expert import open_expert
from face_mllm.experts.joined.fuse import fit_on_val
from face_mllm.experts.joined.fusion import read_fusion
from face_mllm.experts.joined.verdict import Verdicts
from face_mllm.experts.mask_fer import MaskFerExpert
from face_mllm.hardware import for_precision
from face_mllm.rows import FaceRows
from face_mllm.scoring import LikelihoodScorer
from face_mllm.train import assemble, run_folder, train

ASKED = [("Which expression?", ("anger", "happiness", "neutral"))]

pytestmark = pytest.mark.usefixtures("cache_of_a_test")


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("joined_train")
    write_faces(root / "data")
    write_faces(root / "elsewhere", {"train": 3}, seed=9)
    manifest = json.loads((root / "elsewhere" / "manifest.json").read_text())
    (root / "elsewhere" / "manifest.json").write_text(json.dumps({**manifest, "seed": 9}))
    clip = write_clip(root / "clip", image_processor, WIDTH)
    write_mask_fer(root / "seen", clip, root / "data")
    write_mask_fer(root / "unseen", clip, root / "gone")
    return root


@pytest.fixture
def run(place, tiny_parts, tmp_path):
    """Train a stage on the coloured faces; returns its artifact."""

    def make(name="out", **changes):
        if "init_from" in changes:
            changes = {"vision": {}, "llm": LORA, **changes}
        settings = {"max_steps": 3, "faces_per_device": 4, **changes}
        return train(stage(tiny_parts, place / "data", tmp_path / name, **settings))

    return make


@pytest.fixture
def face(place):
    return FaceRecord.from_row(load_split(place / "data", "test")[1]).open_image()


def expert(place, name="seen", **changes):
    return {"model": str(place / name), **changes}


def test_without_an_expert_the_artifact_knows_nothing_of_one(run):
    out = run()
    assert "expert" not in json.loads((out / "stage.json").read_text())
    assert not (out / "expert").exists()
    assert not (out / "expert.safetensors").exists()
    assert not (out / "fusion.json").exists()
    assert "xpert" not in (out / "README.md").read_text()


def test_token_is_trained_saved_loaded_continued_and_dropped(run, place, face, capsys):
    first = run("s1", expert=expert(place, token=True), verify_packing=True)
    told = capsys.readouterr().err
    assert "expert" in told.split("what trains")[1]  # a line of the freeze table
    assert "labels of these faces" in " ".join(told.split())
    artifact = read_artifact(first)
    assert artifact.expert.token
    assert artifact.trained == ["expert", "projector"]
    scorer = LikelihoodScorer.from_artifact(first, "fp32")
    tokens = load_file(first / "expert.safetensors")
    assert all(torch.equal(scorer.model.expert.state_dict()[k], v) for k, v in tokens.items())
    assert json.loads((first / "face_processor.json").read_text())["image_tokens"] == 3
    again = LikelihoodScorer.from_artifact(first, "fp32")
    np.testing.assert_array_equal(scorer.score(face, ASKED)[0], again.score(face, ASKED)[0])
    # the token matters: another vector, another score
    scorer.processor.expert.look = lambda images, look=scorer.processor.expert.look: (
        dataclasses.replace(look(images), vectors=look(images).vectors.flip(1))
    )
    assert not np.allclose(scorer.score(face, ASKED)[0], again.score(face, ASKED)[0], atol=1e-6)

    frozen = run("s2", init_from=first, expert={"train": "frozen"})
    kept = load_file(frozen / "expert.safetensors")
    assert all(torch.equal(kept[k], v) for k, v in tokens.items())
    went_on = run("s3", init_from=first)
    moved = load_file(went_on / "expert.safetensors")
    assert any(not torch.equal(moved[k], v) for k, v in tokens.items())
    dropped = run("s4", init_from=went_on, expert={"token": False})
    assert read_artifact(dropped).expert is None
    assert not (dropped / "expert.safetensors").exists()
    LikelihoodScorer.from_artifact(dropped, "fp32").score(face, ASKED)


def test_the_token_has_its_own_learning_rate(run, place):
    def moved(name, **changes):
        start = run(f"{name}0", expert=expert(place, token=True), max_steps=1, learning_rate=1e-9)
        end = run(name, init_from=start, max_steps=2, expert=changes)
        pairs = [
            (load_file(start / f), load_file(end / f))
            for f in ("expert.safetensors", "projector.safetensors")
        ]
        return [max(float((b[k] - a[k]).abs().max()) for k in a) for a, b in pairs]

    token, projector = moved("slow", learning_rate=1e-6)
    assert token < 1e-4 < projector
    token, projector = moved("same")
    assert token > 1e-3


def test_a_head_that_trains_along_resumes_and_is_a_whole_expert_in_the_artifact(run, place, face):
    settings = {
        "expert": expert(place, token=True, head="full", loss_weight=0.5),
        "save_steps": 2,
        "max_steps": 4,
    }
    whole = run("whole", **settings)

    class KilledError(Exception):
        pass

    def kill(step, steps, text):
        if step == 3 and steps == 4:
            raise KilledError

    settings = {**read_artifact(whole).chain[0]["config"], "out": whole.with_name("broken")}
    broken = StageConfig.model_validate(settings)
    with pytest.raises(KilledError):
        train(broken, kill)
    assert (run_folder(broken) / "checkpoint-2" / "expert_head.safetensors").exists()
    train(broken)
    for name in ("expert.safetensors", "projector.safetensors", "expert/mask_fer.safetensors"):
        one, two = load_file(whole / name), load_file(broken.out / name)
        assert all(torch.equal(one[key], two[key]) for key in one), name

    artifact = read_artifact(whole)
    assert artifact.trained == ["expert", "projector"]
    assert artifact.expert.trained_along
    assert not (whole / "expert_head.safetensors").exists()
    before, after = (
        load_file(f / "mask_fer.safetensors") for f in (place / "seen", whole / "expert")
    )
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    alone = MaskFerExpert.from_pretrained(whole / "expert")
    inside = LikelihoodScorer.from_artifact(whole, "fp32").processor.expert
    torch.testing.assert_close(alone.vectors([face]), inside.look([face]).vectors)
    with pytest.raises(UserError, match="surer than"):
        run("text", init_from=whole, expert={"text": True})


def test_accumulation_changes_nothing_with_the_experts_own_loss(run, place):
    settings = {"expert": expert(place, token=True, head="full"), "max_steps": 1}
    one = run("one", faces_per_device=6, **settings)
    two = run("two", faces_per_device=2, accumulation=3, **settings)
    losses = [read_artifact(out).chain[0]["first_loss"] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_verdicts_of_an_expert_on_faces_it_was_trained_on_are_refused(run, place):
    with pytest.raises(UserError, match="surer than on any new face"):
        run(expert=expert(place, "seen", text=True))
    with pytest.raises(UserError, match="surer"):  # its data is gone: nobody can tell
        run(expert=expert(place, "unseen", text=True))
    out = run("accepted", expert=expert(place, "seen", text=True, verdicts="in_sample"))
    assert read_artifact(out).expert.verdicts == "in_sample"
    assert "verdicts on training faces: in_sample" in (out / "README.md").read_text()


def test_an_expert_trained_elsewhere_speaks_freely(run, place, tmp_path, face):
    info = json.loads((place / "unseen" / "mask_fer.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(place / "unseen", other)
    renamed = tmp_path / "elsewhere"
    write_faces(renamed, {"val": 3}, seed=9)
    shutil.copyfile(place / "elsewhere" / "train-00000.parquet", renamed / "train-00000.parquet")
    info["training"]["data"] = str(renamed)
    (other / "mask_fer.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="surer"):  # the same ids: the same faces
        run(expert=expert(place, "seen", model=str(other), text=True))
    shutil.copyfile(place / "data" / "val-00000.parquet", renamed / "train-00000.parquet")
    out = run("text", expert=expert(place, "seen", model=str(other), text=True))
    assert read_artifact(out).expert.verdicts == "unseen"
    scorer = LikelihoodScorer.from_artifact(out, "fp32")
    said = []
    ids = scorer.processor.branch_ids
    scorer.processor.branch_ids = lambda q, a: said.append(q) or ids(q, a)
    scorer.score(face, ASKED)
    assert said[0].startswith("Expert: ")
    assert said[0].endswith("\nWhich expression?")


def test_out_of_fold_verdicts_come_from_experts_that_never_saw_the_subject(
    run, place, tmp_path, monkeypatch, tiny_parts
):
    trained_on = []

    class Watched(room.Run):
        def __init__(self, config, hardware, train, val, cache):
            super().__init__(config, hardware, train, val, cache)
            trained_on.append((set(train.column("subject")), self.expert))

    monkeypatch.setattr(room, "Run", Watched)
    path = tmp_path / "verdicts.parquet"
    given = ["--model", str(place / "seen"), "--data", str(place / "data"), "--out", str(path)]
    assert main(["mask-fer", "verdicts", *given, "--folds", "3"]) == 0
    verdicts = Verdicts(path, ("neutral", "happiness", "anger"))
    rows = [FaceRecord.from_row(row) for row in load_split(place / "data", "train")]
    assert len(verdicts.rows) == len(rows) == 24
    for record in rows:
        fold = room.fold(record.subject, 3, 1)
        subjects, one = trained_on[fold]
        assert record.subject not in subjects
        found = one.log_probabilities([record.open_image()])[0].double()
        torch.testing.assert_close(verdicts.of(record.id), found, atol=1e-5, rtol=1e-5)
    settings = {"text": True, "verdicts": str(path)}
    out = run("text", expert=expert(place, "seen", **settings))
    assert read_artifact(out).expert.verdicts == "out_of_fold"
    config = stage(tiny_parts, place / "data", tmp_path / "x", expert=expert(place, **settings))
    _, _, processor = assemble(config, for_precision("fp32"))
    drawn, _ = FaceRows.from_stage(config, processor).drawn(rows[0], 0)
    words = processor.expert.words(verdicts.of(rows[0].id))
    assert all(qa.question.startswith(f"{words}\n") for qa in drawn)


def test_late_fusion_is_fitted_on_val_alone_and_shown_beside_the_model(run, place, tmp_path, face):
    out = run("fused", expert=expert(place, fusion=True))
    found = read_fusion(out)
    assert found is not None
    assert found.val["faces"] == 15  # of 18 val faces three have no expression
    assert found.val["fused"]["uar"] >= found.val["mllm"]["uar"]
    bare = tmp_path / "bare"
    shutil.copytree(place / "data", bare)
    for split in ("train", "test"):
        (bare / f"{split}-00000.parquet").unlink()
    again = fit_on_val(LikelihoodScorer.from_artifact(out, "fp32"), bare)
    assert again.weight == found.weight
    assert again.temperature == pytest.approx(found.temperature, rel=1e-3)

    results = evaluate(out, place / "data", tmp_path / "eval", tasks=["expression"])["results"]
    uar = {e["scorer"]: e for e in results if e["metric"] == "uar"}
    assert set(uar) == {"likelihood", "expert", "late_fusion"}
    assert {entry["n"] for entry in uar.values()} == {10}
    alone = open_expert(place / "seen")
    test = [FaceRecord.from_row(row) for row in load_split(place / "data", "test")]
    known = [r for r in test if "expression" in r.labels]
    guess = alone.log_probabilities([r.open_image() for r in known]).argmax(-1)
    truth = np.array([alone.classes.index(r.labels["expression"]) for r in known])
    recalls = [(guess.numpy()[truth == k] == k).mean() for k in range(3)]
    assert uar["expert"]["value"] == pytest.approx(np.mean(recalls))

    model = FaceMLLM.from_pretrained(out, "fp32")
    described = model.describe(face)["expert"]
    assert 0 < described["probability"] <= 1
    own = model.score(face, "Which expression?", list(model.questions[0]["choices"]))
    likeliest = max(described["expression"], key=described["expression"].get)
    assert described["disagrees"] == (likeliest != max(own, key=own.get))
    face.save(tmp_path / "face.png")
    assert "expert.disagrees" in describe_images(out, [tmp_path / "face.png"], "csv")


def test_fuse_joins_an_expert_to_a_finished_artifact(run, place, tmp_path, face, capsys):
    plain = run("plain")
    out = tmp_path / "with"
    given = ["fuse", "--model", str(plain), "--data", str(place / "data"), "--out", str(out)]
    assert main(given) == 2
    assert "--expert" in capsys.readouterr().err
    assert main([*given, "--expert", str(place / "seen")]) == 0
    one, two = (LikelihoodScorer.from_artifact(folder, "fp32") for folder in (plain, out))
    np.testing.assert_array_equal(one.score(face, ASKED)[0], two.score(face, ASKED)[0])
    assert two.fusion.val["faces"] == 15
    went_on = run("later", init_from=out)
    assert read_fusion(went_on) is not None  # fitted anew: the model is another
    off = run("off", init_from=out, expert={"fusion": False})
    assert read_artifact(off).expert is None


@pytest.mark.parametrize(
    "changes,words",
    [
        ({}, "set expert.model"),
        ({"model": "nowhere", "token": True}, "no expert there"),
        ({"model": "SEEN", "fusion": True, "data": "elsewhere"}, "no val split"),
        ({"model": "SEEN", "head": "full", "text": True}, "needs head: frozen"),
        ({"model": "SEEN", "head": "full", "fusion": True}, "without a token"),
    ],
)
def test_bad_settings_are_one_clear_error(run, place, tmp_path, tiny_parts, changes, words):
    data = place / changes.pop("data", "data")
    given = {key: str(place / "seen") if v == "SEEN" else v for key, v in changes.items()}
    with pytest.raises((UserError, ValueError), match=words):
        train(stage(tiny_parts, data, tmp_path / "bad", expert=given))
    assert not (tmp_path / "bad").exists()
