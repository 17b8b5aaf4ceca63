"""The two verbs on tiny models: train from unlabelled faces, measure beside the controls."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from exp_clip_doubles import (
    WIDTH,
    picture,
    relabelled,
    write_bert,
    write_clip,
    write_faces,
)

from data_pipeline.records import FaceRecord, load_split
from face_mllm.cli import main
from face_mllm.configio import load_yaml_model
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.artifact import load_exp_clip
from face_mllm.experts.exp_clip.config import INSTRUCTION, ExpClipConfig
from face_mllm.experts.exp_clip.evaluate import Asked, evaluate, labelled, load_fold
from face_mllm.experts.exp_clip.faces import UnlabelledFaces, teacher_features
from face_mllm.experts.exp_clip.head import WEIGHT
from face_mllm.experts.exp_clip.prompts import CLASSES
from face_mllm.experts.exp_clip.train import train_exp_clip
from face_mllm.experts.exp_clip.zero_shot import prompt_features, zero_shot
from face_mllm.experts.loading import load_expert
from face_mllm.experts.pixels import EXP_CLIP_PAPER, exp_clip_rule
from face_mllm.features import FrozenClip

pytestmark = pytest.mark.usefixtures("cache_of_a_module")


def quiet(*_):
    """No progress."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("exp_clip")
    write_clip(root / "clip")
    write_bert(root / "bert")
    write_faces(root / "data")
    return root


def settings(place, out, **changes) -> ExpClipConfig:
    given = {
        "data": [place / "data"],
        "out": place / out,
        "features": place / "store",
        "clip": str(place / "clip"),
        "teacher": {"kind": "text", "model": str(place / "bert"), "instruction": "Describe ."},
        "epochs": 2,
        "batch_size": 12,
        "precision": "fp32",
    }
    return ExpClipConfig(**{**given, **changes})


@pytest.fixture(scope="module")
def expert(place):
    return train_exp_clip(settings(place, "expert"), lambda *_: None)


@pytest.fixture(scope="module")
def measured(place, expert):
    found = evaluate(expert, [place / "data"], place / "measured")
    return found, place / "measured"


# --- faces


def test_labels_are_never_read(place, monkeypatch):
    read = []
    from face_mllm.experts.exp_clip import faces as room

    real = room.iter_rows
    monkeypatch.setattr(room, "iter_rows", lambda *args: (read.append(args[2]), real(*args))[1])
    faces = list(UnlabelledFaces([place / "data"]))
    assert len(faces) == 24
    captions = dict(UnlabelledFaces([place / "data"]).captions())
    assert captions.keys() == {face.id for face in faces}
    assert set(read) == {("id", "image"), ("id", "caption")}
    assert not any(face.labels or face.subject for face in faces)


def test_plain_folders_mix_with_built_data_and_the_limit_holds(place, tmp_path):
    for number, row in enumerate(load_split(place / "data", "test")):
        (tmp_path / f"{number:02d}.png").write_bytes(row["image"]["bytes"])
    faces = UnlabelledFaces([tmp_path, place / "data"], limit=20)
    assert len(faces) == len(list(faces)) == 20
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="neither"):
        UnlabelledFaces([tmp_path / "nothing"])


class Counting:
    """A teacher that counts its work."""

    def __init__(self, reads):
        self.reads, self.identity, self.seen = reads, {"teacher": reads}, 0

    def features(self, faces):
        self.seen += len(faces)
        return torch.arange(1.0, 1 + 3 * len(faces)).view(-1, 3)


@pytest.mark.parametrize("reads", ["image", "caption"])
def test_teacher_features_are_kept_by_content(place, tmp_path, reads):
    faces, teacher = UnlabelledFaces([place / "data"]), Counting(reads)
    first, again = (teacher_features(teacher, faces, tmp_path, lambda *_: None) for _ in "ab")
    distinct = 24 if reads == "image" else len({caption for _, caption in faces.captions()})
    assert teacher.seen == distinct
    assert torch.equal(first, again)
    assert torch.allclose(first.float().norm(dim=1), torch.ones(24), atol=1e-3)
    teacher.identity = {"teacher": "another"}
    teacher_features(teacher, faces, tmp_path, lambda *_: None)
    assert teacher.seen == 2 * distinct


def test_a_text_teacher_needs_captions(place, tmp_path):
    (tmp_path / "a.png").write_bytes(load_split(place / "data", "test")[0]["image"]["bytes"])
    with pytest.raises(UserError, match="no caption"):
        teacher_features(
            Counting("caption"), UnlabelledFaces([tmp_path]), tmp_path, lambda *_: None
        )


def test_captions_are_looked_at_before_any_feature(place, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("computed features first")

    monkeypatch.setattr("face_mllm.experts.exp_clip.train.features", never)
    for k in range(12):
        (tmp_path / f"{k}.png").write_bytes(picture(k % 3, k))
    mixed = settings(place, "none", data=[place / "data", tmp_path])
    with pytest.raises(UserError, match=r"0.png: no caption"):
        train_exp_clip(mixed, quiet)


# --- train


def test_the_folder_is_safetensors_and_json_and_loads(place, expert):
    names = {path.name for path in expert.iterdir()}
    assert names == {
        "exp_clip.safetensors",
        "expert.json",
        "metrics.jsonl",
        "training.yaml",
        "README.md",
    }
    info = json.loads((expert / "expert.json").read_text())
    assert (info["clip_width"], info["teacher_width"], info["data"]["faces"]) == (WIDTH, 32, 24)
    loaded = load_exp_clip(expert)
    assert loaded.clip.fingerprint == info["clip_fingerprint"]
    curve = [json.loads(line) for line in (expert / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in curve] == [1, 4]
    assert "24 faces without labels" in (expert / "README.md").read_text()


def test_the_same_run_again_gives_the_same_weights(place, expert):
    again = train_exp_clip(settings(place, "again"), lambda *_: None)
    assert (again / "exp_clip.safetensors").read_bytes() == (
        expert / "exp_clip.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match="already holds files"):
        train_exp_clip(settings(place, "again"), lambda *_: None)


def test_a_teacher_whose_features_are_kept_is_not_loaded_again(place, expert, monkeypatch):
    from face_mllm.experts.exp_clip import teachers

    def never(*_):
        raise AssertionError("loaded a teacher for nothing")

    monkeypatch.setattr(teachers, "_text_model", never)
    once_more = train_exp_clip(settings(place, "once_more"), quiet)
    assert torch.equal(*(load_exp_clip(each).head.mlp.weight for each in (expert, once_more)))


def test_either_expert_loads_behind_one_interface(place, expert, tmp_path):
    loaded = load_expert(expert)
    faces = [FaceRecord.from_row(row) for row in load_split(place / "data", "test")]
    images = [face.open_image() for face in faces[:4]]
    vectors, logs = loaded.vectors(images), loaded.log_probabilities(images)
    assert vectors.shape == (4, loaded.width)
    assert torch.allclose(logs.exp().sum(-1), torch.ones(4), atol=1e-5)
    clip = FrozenClip(str(place / "clip"))
    texts = prompt_features(clip, loaded.classes, 5)
    features = clip.features(faces[:4], root=tmp_path)
    expected = zero_shot(loaded.head, features, texts, clip.logit_scale).log_softmax(-1)
    torch.testing.assert_close(logs, expected)
    torch.testing.assert_close(vectors, features @ loaded.head.mlp.weight.T)
    with pytest.raises(UserError, match="no expert"):
        load_expert(tmp_path)


def test_paper_preprocessing_leaves_out_mean_and_std(place):
    from PIL import Image

    assert exp_clip_rule(True) is EXP_CLIP_PAPER
    clip = FrozenClip(str(place / "clip"), EXP_CLIP_PAPER)
    made = clip.pixels(clip.squares([Image.new("RGB", (40, 20), (255, 51, 0))]))
    assert made.shape == (1, 3, 16, 16)
    assert torch.allclose(made[0, :, 0, 0], torch.tensor([1.0, 0.2, 0.0]))


def test_the_paper_s_pixels_reach_training_and_test(place, expert, monkeypatch):
    seen = []
    real = FrozenClip.pixels
    monkeypatch.setattr(
        FrozenClip, "pixels", lambda self, x: (seen.append(self.rule), real(self, x))[1]
    )
    given = {"paper_preprocess": True, "features": place / "paper_store"}
    paper = train_exp_clip(settings(place, "paper", **given), quiet)
    assert set(seen) == {EXP_CLIP_PAPER}
    weights = [load_exp_clip(folder).head.mlp.weight for folder in (paper, expert)]
    assert not torch.allclose(*weights, atol=1e-6)
    del seen[:]
    found = evaluate(paper, [place / "data"], place / "paper_eval", Asked(prompt_types=(1,)))
    assert set(seen) == {EXP_CLIP_PAPER}
    assert found["paper_preprocess"]


# --- eval


def test_every_prompt_type_stands_beside_the_controls(measured):
    found, folder = measured
    entries = [e for e in found["results"] if e["metric"] == "uar"]
    assert [entry["prompt_type"] for entry in entries] == [1, 2, 3, 4, 5]
    for entry in entries:
        assert set(entry["baselines"]) == set(entry["baselines_ci95"]) == {"clip", "clip_upsampled"}
        assert entry["gain"] == pytest.approx(entry["value"] - entry["baselines"]["clip"])
        assert entry["gain_ci95"][0] <= entry["gain_ci95"][1]
        assert entry["n"] == 11  # one face of 12 has no expression
    assert found["left_out"] == [1]
    assert len(found["classes"]) == 7
    assert json.loads((folder / "results.json").read_text()) == found
    table = (folder / "table.md").read_text()
    assert table.count("| UAR |") == table.count("| WAR |") == 5
    assert (folder / "predictions.parquet").is_file()


def test_folds_are_averaged(place, expert, tmp_path):
    other = write_faces(tmp_path / "fold2", train=1, test=9)
    asked = Asked(prompt_types=(2,))
    found = evaluate(expert, [place / "data", other], tmp_path / "out", asked)
    uar = {e["protocol"]: e for e in found["results"] if e["metric"] == "uar"}
    assert list(uar) == ["mean of 2 folds", "toy/a, fold 1", "toy/a, fold 2"]
    mean, folds = uar["mean of 2 folds"], [uar["toy/a, fold 1"], uar["toy/a, fold 2"]]
    assert mean["value"] == pytest.approx(np.mean([fold["value"] for fold in folds]))
    assert mean["n"] == 11 + 8
    assert "baselines" in mean
    assert mean["baselines"]["clip"] is not None


def test_folds_are_resampled_apart(place, expert, tmp_path):
    """Two folds of the same faces: their mean varies less than either, were they two."""
    faces = write_faces(tmp_path / "faces", train=1, test=42)
    every = [{"expression": name} for name in CLASSES[:7]]  # whatever it answers, some are right
    data = relabelled(faces, tmp_path / "fold", "test", lambda k: every[k % 7])
    found = evaluate(expert, [data, data], tmp_path / "out", Asked(prompt_types=(1,)))
    mean, fold, _ = (e["ci95"] for e in found["results"] if e["metric"] == "war")
    assert mean[1] - mean[0] < 0.9 * (fold[1] - fold[0])


def test_clips_are_one_row_each(expert, tmp_path):
    data = write_faces(tmp_path / "clips", train=1, test=6, frames=18)
    asked = Asked(prompt_types=(3,), clips=True)
    found = evaluate(expert, [data], tmp_path / "out", asked)
    assert {e["n"] for e in found["results"] if e["metric"] == "war"} == {6}
    with pytest.raises(UserError, match="tear clips"):
        evaluate(expert, [data], tmp_path / "no", Asked(clips=True, limit=3))


def test_clips_built_with_16_frames_keep_them_all_under_the_paper_s_pixels(expert, tmp_path):
    data = write_faces(tmp_path / "clips", train=1, test=4, frames=16)
    asked = Asked(clips=True)
    (units,) = labelled([data], asked)
    fold = load_fold(load_exp_clip(expert, paper_preprocess=True), units, "p", asked, quiet)
    assert fold.features.shape[:2] == (4, 16)
    first = Asked(clips=True, short_clips="first")
    with pytest.raises(UserError, match="short ones cannot be told"):
        evaluate(expert, [data], tmp_path / "no", first)


def test_the_clip_recipe_reads_the_published_lists_fold_by_fold(expert, tmp_path):
    """As Exp-CLIP's annotation/ writes them: another machine's folders, labels from 0."""
    elsewhere = "/data/EECS-IoannisLab/datasets/DFEW"
    root, folds = tmp_path / "DFEW", []
    for fold, labels in ((1, (0, 1, 2)), (2, (3, 4))):
        lines = []
        for label in labels:
            clip = f"DFEW_Frame_Face/{fold}{label:04d}"
            (root / clip).mkdir(parents=True)
            for frame in range(1, 19):
                pixels = picture(label % 3, 100 * label + frame)
                (root / clip / f"{frame:03d}.png").write_bytes(pixels)
            lines.append(f"{elsewhere}/{clip} 18 {label}\n")
        (root / f"DFEW_set_{fold}_test.txt").write_text("".join(lines))
        folds.append(tmp_path / f"fold{fold}")
        build = ["data", "build", "experts/data/clips", "--out", str(folds[-1])]
        given = [f"sources.0.root={root}", f"sources.0.lists=DFEW_set_{fold}_test.txt"]
        assert main([*build, *given]) == 0
    found = evaluate(expert, folds, tmp_path / "out", Asked(prompt_types=(2,), clips=True))
    counts = {e["protocol"]: e["n"] for e in found["results"] if e["metric"] == "war"}
    assert list(counts.values()) == [5, 3, 2]
    rows = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert set(rows["truth"]) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_released_checkpoint_needs_its_clip_and_fits_it(place, tmp_path):
    path = tmp_path / "ExpCLIP_B32.pth"
    torch.save({WEIGHT: torch.randn(40, WIDTH)}, path)
    with pytest.raises(UserError, match="--clip"):
        load_exp_clip(path)
    loaded = load_exp_clip(path, str(place / "clip"))
    assert loaded.clip.rule == EXP_CLIP_PAPER  # as it was trained
    torch.save({WEIGHT: torch.randn(40, WIDTH + 1)}, path)
    with pytest.raises(UserError, match="takes features of"):
        load_exp_clip(path, str(place / "clip"))


# --- command line and shipped configs


def test_the_verbs(place, tmp_path, capsys):
    path = tmp_path / "exp_clip.yaml"
    path.write_text(yaml.safe_dump(json.loads(settings(place, "verb").model_dump_json())))
    out = tmp_path / "head"
    assert main(["exp-clip", "train", str(path), f"out={out}", "epochs=1"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    words = ["exp-clip", "eval", "--model", str(out), "--data", str(place / "data")]
    words += ["--out", str(tmp_path / "measured"), "--prompt-types", "1,4"]
    assert main([*words, "--mean-of", "embeddings"]) == 0
    found = json.loads((tmp_path / "measured" / "results.json").read_text())
    assert found["ensemble"] == "embeddings"
    assert {entry["prompt_type"] for entry in found["results"]} == {1, 4}
    assert "toy/a: zero-shot expression, 7 classes" in " ".join(capsys.readouterr().err.split())
    for bad in (["--prompt-types", "6"], ["--mean-of", "modes"]):
        assert main([*words, *bad]) == 2
    assert " -> " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["exp-clip"], ["exp-clip", "train"], ["exp-clip", "eval"]])
def test_help(words, capsys):
    assert main([*words, "--help"]) == 0
    assert "Usage: face-mllm exp-clip" in capsys.readouterr().out


def test_shipped_configs_are_valid_and_the_full_one_is_the_papers():
    full = load_yaml_model("exp_clip", ExpClipConfig)
    assert full.teacher.instruction == INSTRUCTION
    assert (full.epochs, full.batch_size, full.learning_rate, full.seed) == (5, 512, 1e-3, 1)
    assert (full.momentum, full.weight_decay) == (0.9, 1e-4)
    embedded = load_yaml_model("embedded/exp_clip", ExpClipConfig)
    assert embedded.clip == "embedded:face-clip"
