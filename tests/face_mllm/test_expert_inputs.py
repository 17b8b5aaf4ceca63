"""What an expert cannot work with is one line, before pictures are opened, and leaves nothing."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from exp_clip_doubles import WIDTH, relabelled, write_bert, write_clip, write_faces
from mask_fer_faces import write_expressions
from safetensors.torch import load_file, save_file

from data_pipeline.records import load_split, read_manifest
from face_mllm.cli import main
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip import train as exp_clip_room
from face_mllm.experts.exp_clip.artifact import load_exp_clip
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.evaluate import Asked, evaluate
from face_mllm.experts.exp_clip.faces import UnlabelledFaces
from face_mllm.experts.exp_clip.head import HEAD_FILE, WEIGHT, load_head
from face_mllm.experts.exp_clip.train import train_exp_clip
from face_mllm.experts.mask_fer import evaluate as mask_fer_room
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.experts.mask_fer.faces import load_training
from face_mllm.experts.mask_fer.train import Run, train_mask_fer
from face_mllm.features import FrozenClip
from face_mllm.flat_state import save_state
from face_mllm.hardware import for_precision

pytestmark = pytest.mark.usefixtures("cache_of_a_module")


def quiet(*_):
    """No progress."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("experts")
    write_clip(root / "clip")
    write_bert(root / "bert")
    write_faces(root / "data")
    write_expressions(root / "toy")
    return root


@pytest.fixture(scope="module")
def head(place):
    return train_exp_clip(exp_clip(place, "head"), quiet)


@pytest.fixture(scope="module")
def mask(place):
    return train_mask_fer(mask_fer(place, "mask"), quiet)


def exp_clip(place, out, **changes) -> ExpClipConfig:
    given = {
        "data": [place / "data"],
        "out": place / out,
        "clip": str(place / "clip"),
        "teacher": {"kind": "text", "model": str(place / "bert"), "instruction": "Describe ."},
        "epochs": 1,
        "batch_size": 12,
        "precision": "fp32",
    }
    return ExpClipConfig.model_validate({**given, **changes})


def mask_fer(place, out, **changes) -> MaskFerConfig:
    given = {
        "data": place / "toy",
        "out": place / out,
        "classes": ["neutral", "happiness", "anger"],
        "clip": {"model": str(place / "clip")},
        "mask": {"kind": "none"},
        "epochs": 1,
        "batch_size": 9,
        "precision": "fp32",
    }
    return MaskFerConfig.model_validate({**given, **changes})


def copied(source, folder, drop=()):
    shutil.copytree(source, folder)
    for name in drop:
        (folder / name).unlink()
    return folder


# --- datasets


def test_a_dataset_is_looked_at_before_the_training(place, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("trained on what cannot be named")

    monkeypatch.setattr("face_mllm.experts.mask_fer.train.Run.advance", never)
    bare = copied(place / "toy", tmp_path / "bare", ["manifest.json"])
    with pytest.raises(UserError, match=r"manifest.json: not found"):
        train_mask_fer(mask_fer(place, "none", data=bare), quiet)
    (bare / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no keys with values"):
        read_manifest(bare)
    (bare / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid json"):
        read_manifest(bare)


def test_every_dataset_is_looked_at_before_the_first_picture(
    place, head, mask, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("computed features although the second dataset has no test split")

    monkeypatch.setattr(FrozenClip, "cached", never)
    data = [place / "toy", copied(place / "toy", tmp_path / "bare", ["test-00000.parquet"])]
    with pytest.raises(UserError, match="bare: no test-"):
        mask_fer_room.evaluate(mask, data, tmp_path / "out")
    with pytest.raises(UserError, match="bare: no test-"):
        evaluate(head, data, tmp_path / "out", Asked(classes=7))
    assert not (tmp_path / "out").exists()


def test_an_empty_split_says_so(place, tmp_path):
    path = copied(place / "toy", tmp_path / "empty") / "train-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match=r"no train-\*.parquet with a face in it"):
        load_split(tmp_path / "empty", "train")


def test_a_label_that_is_no_word_is_named_by_row(place, tmp_path):
    odd = relabelled(place / "toy", tmp_path / "odd", "train", lambda _: {"expression": ["anger"]})
    with pytest.raises(UserError, match="row 0 of train: the expression is"):
        train_mask_fer(mask_fer(place, "none", data=odd), quiet)


def test_a_broken_picture_of_a_plain_folder_is_named_by_path(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.png").write_bytes(b"no")
    (face,) = UnlabelledFaces([tmp_path])
    with pytest.raises(UserError, match=r"deep/x.png: not a readable image"):
        face.open_image()
    with pytest.raises(UserError, match="no such folder"):
        UnlabelledFaces([tmp_path / "gone"])


# --- classes


def test_a_remap_to_no_class_would_lose_faces(place, mask, tmp_path, capsys):
    with pytest.raises(ValueError, match="fear is none of the classes"):
        mask_fer(place, "none", remap={"contempt": "fear"})
    argv = ["mask-fer", "eval", "--model", str(mask), "--data", str(place / "toy")]
    assert main([*argv, "--out", str(tmp_path / "out"), "--remap", "happiness=fear"]) == 2
    assert "remap happiness -> fear" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_exp_clip_takes_as_many_classes_as_the_data_show(place, head, tmp_path, capsys):
    shown = {7: "fear", 8: "contempt", 11: "helplessness"}
    for count, word in shown.items():
        data = relabelled(
            place / "data",
            tmp_path / word,
            "test",
            lambda k, word=word: {"expression": word if k else "anger"},
        )
        found = evaluate(head, [data], tmp_path / f"{word}_out", Asked(prompt_types=(1,)))
        assert (len(found["classes"]), found["left_out"]) == (count, [0])
    argv = ["exp-clip", "eval", "--model", str(head), "--data", str(place / "data")]
    assert main([*argv, "--out", str(tmp_path / "no"), "--classes", "9"]) == 2
    assert "choose 7, 8 or 11" in capsys.readouterr().err


def test_frames_of_several_expressions_are_no_clip(place, head, tmp_path):
    frames = write_faces(tmp_path / "frames", train=1, test=3, frames=2)
    words = ["happiness", "anger"]
    mixed = relabelled(frames, tmp_path / "mixed", "test", lambda k: {"expression": words[k % 2]})
    with pytest.raises(UserError, match="the frames of 'test0' show anger, happiness: no clip"):
        evaluate(head, [mixed], tmp_path / "out", Asked(clips=True))


def test_a_prompt_type_named_twice_counts_once(place, head, tmp_path):
    argv = ["exp-clip", "eval", "--model", str(head), "--data", str(place / "data")]
    assert main([*argv, "--out", str(tmp_path / "out"), "--prompt-types", "2,1,2"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [e["prompt_type"] for e in found if e["metric"] == "war"] == [1, 2]


# --- models


def test_numbers_that_are_not_finite_are_refused_where_they_arise(place, tmp_path):
    broken = copied(place / "clip", tmp_path / "clip")
    state = load_file(broken / "model.safetensors")
    state["visual_projection.weight"].fill_(float("nan"))
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="clip: its features are not finite"):
        FrozenClip(str(broken))
    save_file({WEIGHT: torch.full((4, WIDTH), float("inf"))}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="not finite"):
        load_head(tmp_path / "head.safetensors")


def test_a_head_takes_its_own_clip_wherever_it_lies_and_no_other(place, head, tmp_path):
    moved = copied(place / "clip", tmp_path / "moved")
    assert load_exp_clip(head, str(moved)).clip.width == WIDTH
    state = load_file(moved / "model.safetensors")
    state["visual_projection.weight"].neg_()
    save_file(state, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not the CLIP this expert was trained on"):
        load_exp_clip(head, str(moved))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{}", b'{"clip": 3}'])
def test_a_damaged_head_folder_says_so(head, tmp_path, content):
    folder = copied(head, tmp_path / "head")
    (folder / "expert.json").write_bytes(content)
    with pytest.raises(UserError, match=r"expert.json: missing or damaged"):
        load_exp_clip(folder)
    assert (folder / HEAD_FILE).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["clip"].pop("rule"),
        lambda info: info["clip"].update(dtype="odd"),
        lambda info: info["mask"].update(kind="odd"),
        lambda info: info["eye"].pop("mean"),
        lambda info: info.update(clip=None),
    ],
)
def test_a_damaged_mask_fer_folder_says_so(mask, tmp_path, change):
    folder = copied(mask, tmp_path / "mask")
    info = json.loads((folder / "mask_fer.json").read_text())
    change(info)
    (folder / "mask_fer.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"mask_fer.json: damaged"):
        MaskFerExpert.from_pretrained(folder)


def test_a_training_that_is_not_told_cannot_be_measured_against(place, mask, tmp_path):
    folder = copied(mask, tmp_path / "mask")
    info = json.loads((folder / "mask_fer.json").read_text())
    info["training"].pop("class_counts")
    (folder / "mask_fer.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="says no class_counts of its training"):
        mask_fer_room.evaluate(folder, [place / "toy"], tmp_path / "out")


def test_another_build_of_the_training_s_source_is_named_beside_its_figures(
    place, mask, tmp_path, capsys
):
    """It counts as unseen, as another domain of it may; but its faces may be the trained ones."""
    again = copied(place / "toy", tmp_path / "again")
    (again / "manifest.json").write_text(json.dumps({**read_manifest(again), "seed": 9}))
    found = mask_fer_room.evaluate(mask, [place / "toy", again], tmp_path / "out")
    shared = {each["data"]: each["shared"] for each in found["results"]}
    assert shared == {str(place / "toy"): [], str(again): ["toy"]}
    drawn = mask_fer_room.table(found)
    assert [name.partition(" (")[2] for name in drawn.columns[0].cells][:2] == [
        "trained on)",
        "as trained on: toy)",
    ]


def test_a_teacher_of_another_width_is_refused_before_any_feature(place, monkeypatch):
    def never(*_):
        raise AssertionError("computed features first")

    monkeypatch.setattr(exp_clip_room, "student_features", never)
    teacher = exp_clip(place, "none").teacher.model_copy(update={"width": 77})
    with pytest.raises(UserError, match=r"32 wide, teacher.width says 77"):
        train_exp_clip(exp_clip(place, "none").model_copy(update={"teacher": teacher}), quiet)
    nothing = teacher.model_copy(update={"model": str(place / "toy")})
    with pytest.raises(UserError, match="not a model this transformers version can load"):
        train_exp_clip(exp_clip(place, "none").model_copy(update={"teacher": nothing}), quiet)


# --- runs


def test_a_checkpoint_of_another_trainer_or_of_other_data_is_refused(place, tmp_path):
    save_state(tmp_path / "other.safetensors", {"a": torch.ones(1)}, {"config": {}, "step": 1})
    resumed = mask_fer(place, "resumed", resume=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="not a mask-FER checkpoint"):
        train_mask_fer(resumed, quiet)
    data = copied(place / "toy", tmp_path / "data")
    config = mask_fer(tmp_path, "out", data=data, clip={"model": str(place / "clip")}, epochs=2)
    faces = load_training(data, config.classes, {}, 0.1)
    run = Run(config, for_precision("fp32"), *faces)
    run.prepare()
    while not run.log:
        run.advance()
    (data / "manifest.json").write_text(json.dumps({**read_manifest(data), "seed": 1}))
    with pytest.raises(UserError, match="trained with other settings of data_fingerprint"):
        Run(config, for_precision("fp32"), *faces).resume()


def test_several_processes_are_refused(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process, 2 were started"):
        train_mask_fer(mask_fer(place, "none"), quiet)
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": {"erase_area": [0.5, 0.1]}},
        {"augment": {"erase_area": [0.1, 9]}},
        {"mask": {"hidden_sizes": [], "depths": []}},
        {"mask": {"hidden_sizes": [0], "depths": [1]}},
        {"seed": -1},
        {"seed": 10**18},
    ],
)
def test_settings_without_a_meaning_are_refused(place, changes):
    with pytest.raises(ValueError, match=r"Input should be|two shares|at least 1"):
        mask_fer(place, "none", **changes)


def test_what_stops_the_first_process_stops_the_others(place, monkeypatch):
    """Else they would wait for features that nobody computes."""

    def told(_action):  # what `on_main` does in the second process
        raise UserError("the first process found no teacher")

    def never(*_):
        raise AssertionError("computed features of its own")

    monkeypatch.setattr(exp_clip_room, "on_main", told)
    monkeypatch.setattr(exp_clip_room, "student_features", never)
    with pytest.raises(UserError, match="found no teacher"):
        train_exp_clip(exp_clip(place, "none"), quiet)
