"""What an expert must not do: leak, cost what it need not, or fail hours in."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from exp_clip_doubles import write_clip as write_text_clip
from joined_faces import (
    CHOICES,
    CLASSES,
    WIDTH,
    write_clip,
    write_exp_clip,
    write_faces,
    write_mask_fer,
)
from test_train import LORA, stage

from data_pipeline.records import FaceRecord, load_split
from face_mllm.artifact import read_artifact
from face_mllm.chat import FaceMLLM
from face_mllm.checkpoints import read_progress
from face_mllm.cli import main
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined import expert as experts
from face_mllm.experts.joined import out_of_fold
from face_mllm.experts.joined.expert import open_expert
from face_mllm.experts.joined.fuse import fuse
from face_mllm.experts.joined.verdict import write_verdicts
from face_mllm.scoring import LikelihoodScorer
from face_mllm.train import run_folder, train

pytestmark = pytest.mark.usefixtures("cache_of_a_test")


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("limits")
    write_faces(root / "data")
    clip = write_clip(root / "clip", image_processor, WIDTH)
    write_mask_fer(root / "mask_fer", clip, root / "data")
    write_text_clip(root / "text_clip")
    write_exp_clip(root / "exp_clip", root / "text_clip")
    return root


@pytest.fixture
def config(place, tiny_parts, tmp_path):
    def make(name="out", **changes):
        if "init_from" in changes:
            changes = {"vision": {}, "llm": LORA, **changes}
        settings = {"max_steps": 1, "faces_per_device": 4, **changes}
        return stage(tiny_parts, settings.pop("data", place / "data"), tmp_path / name, **settings)

    return make


@pytest.fixture
def run(config):
    return lambda name="out", **changes: train(config(name, **changes))


@pytest.fixture
def written(config, tmp_path):
    """A stage's YAML, for the pre-flight."""

    def make(**changes):
        path = tmp_path / "stage.yaml"
        path.write_text(json.dumps(config(**changes).model_dump(mode="json", exclude_none=True)))
        return path

    return make


@pytest.fixture
def looks(monkeypatch):
    """Numbers of faces each look of a joined expert was given."""
    seen = []
    look = experts.JoinedExpert.look

    def counted(self, images):
        seen.append(len(images))
        return look(self, images)

    monkeypatch.setattr(experts.JoinedExpert, "look", counted)
    return seen


def test_an_exp_clip_is_token_words_and_fusion_and_needs_no_verdict_file(run, place, tmp_path):
    ways = {"token": True, "text": True, "fusion": True}
    out = run(expert={"model": str(place / "exp_clip"), **ways})
    assert read_artifact(out).expert.verdicts == "unseen"
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(out, moved)
    shutil.rmtree(out)
    face = FaceRecord.from_row(load_split(place / "data", "test")[0]).open_image()
    opinion = FaceMLLM.from_pretrained(moved, "fp32").describe(face)["expert"]
    (alone,) = open_expert(place / "exp_clip").log_probabilities([face]).exp()
    known = dict(zip(open_expert(place / "exp_clip").classes, alone.tolist(), strict=True))
    assert opinion["expression"] == pytest.approx(known, abs=1e-4)
    assert opinion["answer"] in CHOICES


@pytest.mark.parametrize("name", ["mask_fer", "exp_clip"])
def test_an_expert_trained_along_stays_a_reader_of_labels_in_any_folder(run, place, name):
    """The folder inside an artifact is a whole expert: it must say what it was trained on."""
    given = {"model": str(place / name), "token": True, "head": "full"}
    first = run("along", expert=given)
    with pytest.raises(UserError, match="surer than") as refused:
        run("text", expert={"model": str(first / "expert"), "text": True})
    assert ("mask-fer verdicts" in refused.value.remedy) == (name == "mask_fer")
    kept = run("kept", init_from=first)
    with pytest.raises(UserError, match="surer than"):
        run("later", expert={"model": str(kept / "expert"), "text": True})
    assert "labels" in (first / "expert" / "README.md").read_text()


def test_verdicts_that_lack_a_face_are_refused_before_anything_is_loaded(
    run, written, place, tmp_path, monkeypatch, capsys
):
    names = load_split(place / "data", "train")["id"][:]
    logs = torch.tensor([0.2, 0.5, 0.3]).log()
    path = tmp_path / "verdicts.parquet"
    write_verdicts(path, CLASSES, dict.fromkeys(names[:-2], logs), {})
    given = {"model": str(place / "mask_fer"), "text": True, "verdicts": str(path)}
    monkeypatch.setattr("face_mllm.compose._load_llm", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=f"2 of 24 .*{names[-2]}"):
        run(expert=given)
    assert main(["validate", str(written(expert=given))]) == 2
    assert names[-2] in " ".join(capsys.readouterr().err.split())
    write_verdicts(path, CLASSES[::-1], dict.fromkeys(names, logs), {})
    with pytest.raises(UserError, match="the expert knows"):
        run(expert=given)
    with pytest.raises(UserError, match=r"nowhere\.parquet: no such file"):
        run(expert={**given, "verdicts": str(tmp_path / "nowhere.parquet")})
    with pytest.raises(UserError, match="without verdicts in the prompt"):
        run(expert={**given, "text": False, "fusion": True})


@pytest.mark.parametrize("harm", ["columns", "about", "width"])
def test_a_parquet_file_that_holds_no_verdicts_is_named(run, place, tmp_path, harm):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = load_split(place / "data", "train")["id"][:]
    rows = [[-1.0, -1.0, -1.0]] * len(names)
    columns = {"id": names, "log_probabilities": rows}
    about = {"classes": list(CLASSES)}
    if harm == "columns":
        columns = {"name": names}
    if harm == "about":
        about = {"folds": 5}
    if harm == "width":
        rows[3] = [-1.0]
    table = pa.table(columns).replace_schema_metadata({b"face_mllm": json.dumps(about)})
    path = tmp_path / "verdicts.parquet"
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"verdicts\.parquet"):
        run(
            expert={"model": str(place / "mask_fer"), "text": True, "verdicts": str(path)},
        )


def test_verdicts_of_an_exp_clip_need_no_folds(place, tmp_path, capsys):
    out = tmp_path / "v.parquet"
    given = ["--model", str(place / "exp_clip"), "--data", str(place / "data"), "--out", str(out)]
    assert main(["mask-fer", "verdicts", *given]) == 2
    assert "reads no label" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_folds_that_cannot_be_are_said_before_any_is_trained(place, tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_fold, "_trained", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="no labelled face"):
        out_of_fold.out_of_fold(place / "mask_fer", place / "data", tmp_path / "v.parquet", 40)
    assert not (tmp_path / "v.parquet").exists()


def test_faces_are_looked_at_only_where_the_model_is_told_of_them(run, place, looks, tmp_path):
    given = {"model": str(place / "mask_fer"), "fusion": True, "fusion_faces": 6}
    fused = run("fused", expert=given)
    assert sum(looks[1:]) <= 6  # a blank at loading, then the val faces alone
    scorer = LikelihoodScorer.from_artifact(fused, "fp32")
    looks.clear()
    face = FaceRecord.from_row(load_split(place / "data", "test")[0]).open_image()
    scorer.score(face, [("Which expression?", CHOICES)])
    scorer.generate(face, "Which expression?", 2)
    assert not looks
    names = load_split(place / "data", "train")["id"][:]
    path = tmp_path / "verdicts.parquet"
    write_verdicts(path, CLASSES, dict.fromkeys(names, torch.tensor([0.2, 0.5, 0.3]).log()), {})
    looks.clear()
    run("told", expert={"model": str(place / "mask_fer"), "text": True, "verdicts": str(path)})
    assert sum(looks) == 1


def without_expressions(place, tmp_path):
    """The same data, whose val faces have no expression."""
    bare = tmp_path / "bare"
    shutil.copytree(place / "data", bare)
    other = write_faces(tmp_path / "other", {"val": 6})
    import pyarrow.parquet as pq

    table = pq.read_table(other / "val-00000.parquet")
    pq.write_table(table.take([5]), bare / "val-00000.parquet")
    return bare


def test_fusion_without_a_val_face_to_fit_on_is_refused_first(
    run, written, place, tmp_path, monkeypatch, capsys
):
    bare = without_expressions(place, tmp_path)
    given = {"model": str(place / "exp_clip"), "fusion": True}
    plain = run("plain")
    monkeypatch.setattr("face_mllm.compose._load_llm", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="no val face"):
        run("fused", expert=given, data=bare)
    assert main(["validate", str(written(expert=given, data=bare))]) == 2
    assert "no val face" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="no val face"):
        fuse(plain, bare, tmp_path / "x", place / "exp_clip")
    with pytest.raises(UserError, match="no expert there"):
        fuse(plain, place / "data", tmp_path / "x", place / "data")
    assert not (tmp_path / "x").exists()


def test_fusion_with_an_expert_that_was_trained_on_val_faces_is_refused(run, place, tmp_path):
    """Its weight would be fitted on faces it knows by heart."""
    theirs = tmp_path / "theirs"
    shutil.copytree(place / "data", theirs)
    shutil.copyfile(place / "data" / "val-00000.parquet", theirs / "train-00000.parquet")
    manifest = json.loads((theirs / "manifest.json").read_text())
    (theirs / "manifest.json").write_text(json.dumps({**manifest, "seed": 7}))
    knowing = write_mask_fer(tmp_path / "knowing", place / "clip", theirs)
    plain = run("plain")
    with pytest.raises(UserError, match=r"18 of 18 val faces.*toy_val_0"):
        run("fused", expert={"model": str(knowing), "fusion": True})
    with pytest.raises(UserError, match="val faces"):
        fuse(plain, place / "data", tmp_path / "x", knowing)
    gone = write_mask_fer(tmp_path / "gone", place / "clip", tmp_path / "nowhere")
    fuse(plain, place / "data", tmp_path / "y", gone)


def test_the_card_of_a_fused_artifact_names_the_expert(run, place, tmp_path):
    plain = run("plain")
    assert "Expert:" not in (plain / "README.md").read_text()
    fused = fuse(plain, place / "data", tmp_path / "fused", place / "exp_clip")
    assert "Expert: exp_clip" in (fused / "README.md").read_text()


@pytest.mark.parametrize("name", ["mask_fer", "exp_clip"])
@pytest.mark.parametrize("harm", ["weights", "cut", "about", "empty", "clip"])
def test_a_broken_expert_is_one_line_that_names_its_file(
    written, place, tmp_path, capsys, name, harm
):
    folder = tmp_path / "broken"
    shutil.copytree(place / name, folder)
    about, weights = experts.FILES[name]
    if harm == "weights":
        (folder / weights).unlink()
    elif harm == "cut":
        (folder / weights).write_bytes((folder / weights).read_bytes()[:-40])
    elif harm == "about":
        (folder / about).write_text('{"kind": ')
    elif harm == "empty":
        (folder / about).write_text("[]")
    else:
        text = (folder / about).read_text()
        there = "clip" if name == "mask_fer" else "text_clip"
        (folder / about).write_text(text.replace(str(place / there), str(tmp_path / "gone")))
    path = written(expert={"model": str(folder), "token": True})
    assert main(["validate", str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error:" in said
    assert {"weights": weights, "cut": weights}.get(harm, about) in said
    assert not (tmp_path / "out").exists()


def test_an_exp_clip_tells_apart_as_many_classes_as_the_stage_says(run, place, tmp_path, capsys):
    given = {"model": str(place / "exp_clip"), "fusion": True, "classes": 8}
    out = run("eight", expert=given)
    inside = LikelihoodScorer.from_artifact(out, "fp32").processor.expert
    assert inside.classes[-1] == "contempt"
    assert len(inside.classes) == 8
    went_on = run("later", init_from=out)
    assert read_artifact(went_on).expert.classes == 8
    plain = run("plain")
    eleven = fuse(plain, place / "data", tmp_path / "eleven", place / "exp_clip", classes=11)
    assert read_artifact(eleven).expert.classes == 11
    with pytest.raises(UserError, match="classes it was trained on"):
        run("x", expert={**given, "model": str(place / "mask_fer")})


@pytest.mark.parametrize(
    "given,words",
    [
        ({"token": True, "train": "frozen"}, "its token is new"),
        ({"token": True, "loss_weight": 0.5}, "needs head: full"),
        ({"token": True, "prompt_type": 2}, "classes it was trained on"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(run, place, given, words):
    with pytest.raises((UserError, ValueError), match=words):
        run("x", expert={"model": str(place / "mask_fer"), **given})


def test_a_token_keeps_the_width_it_was_made_with(run, place):
    first = run("s1", expert={"model": str(place / "mask_fer"), "token": True, "hidden": 12})
    with pytest.raises(UserError, match=r"expert\.hidden: 24.*12"):
        run("s2", init_from=first, expert={"hidden": 24})


def test_a_run_goes_on_only_with_the_expert_it_began_with(config, place, tmp_path, image_processor):
    class KilledError(Exception):
        pass

    def kill(step, steps, text):
        if step == 3 and steps == 4:
            raise KilledError

    model = tmp_path / "expert"
    shutil.copytree(place / "mask_fer", model)
    given = {"model": str(model), "token": True}
    broken = config(expert=given, max_steps=4, save_steps=2)
    with pytest.raises(KilledError):
        train(broken, kill)
    assert "expert" in read_progress(run_folder(broken) / "checkpoint-2")["order"]
    shutil.rmtree(model)
    write_mask_fer(model, place / "clip", place / "data", hidden_sizes=[8, 16])
    from safetensors.torch import load_file, save_file

    state = load_file(model / "mask_fer.safetensors")
    save_file({k: v + 0.01 for k, v in state.items()}, model / "mask_fer.safetensors")
    with pytest.raises(UserError, match="with expert"):
        train(StageConfig.model_validate(broken.model_dump()))
    shutil.rmtree(model)
    shutil.copytree(place / "mask_fer", model)
    assert train(broken) == broken.out


def test_two_experts_that_answer_differently_share_no_cached_answer(place, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(place / "mask_fer", other)
    info = json.loads((other / "mask_fer.json").read_text())
    (other / "mask_fer.json").write_text(json.dumps({**info, "logits_from": "separated"}))
    one, two = open_expert(place / "mask_fer"), open_expert(other)
    face = FaceRecord.from_row(load_split(place / "data", "test")[0]).open_image()
    assert not torch.allclose(one.log_probabilities([face]), two.log_probabilities([face]))
    assert one.identity() != two.identity()
