"""The demo, tiny but real: every step, interrupted once, gone on with."""

from __future__ import annotations

import json

import pytest

from face_mllm import demo
from face_mllm.artifact import read_artifact
from face_mllm.errors import UserError
from face_mllm.references import resolve

TINY = demo.Scale({"train": 24, "val": 10, "test": 10}, (2, 2, 2), (0.1,) * 7)


@pytest.fixture(scope="module")
def parts():
    try:
        resolve("embedded:smollm2")
        return resolve("embedded:face-clip")
    except UserError as error:
        pytest.skip(f"embedded models not to be had here: {error}")


def test_demo_goes_on_where_it_was_interrupted(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(demo, "SAMPLE_QUESTIONS", demo.SAMPLE_QUESTIONS[1:2])  # untaught it rambles
    out = tmp_path / "demo"
    train_stage = demo.train_stage

    def interrupted(*args):
        if args[2] == 1:
            raise KeyboardInterrupt
        return train_stage(*args)

    monkeypatch.setattr(demo, "train_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(out)
    assert (out / "stage1_align" / "stage.json").exists()
    assert not (out / "stage2_vqa").exists()

    monkeypatch.setattr(demo, "train_stage", train_stage)
    report = demo.run_demo(out)
    said = capsys.readouterr().out
    assert "already done" in said
    assert "Answers on faces it never saw" in said
    assert report.exists()
    chain = [entry["stage"] for entry in read_artifact(out / "stage3_face").chain]
    assert chain == list(demo.STAGES)
    results = json.loads((out / "evaluation" / "results.json").read_text())["results"]
    tasks = {entry["task"] for entry in results}
    assert {"expression", "action_unit", "attribute", "age", "head_pose"} <= tasks
    assert {"zero_shot_attribute", "zero_shot_attribute_yes_no"} <= tasks


def test_demo_folder_of_another_size_is_refused(tmp_path):
    demo.claim_folder(tmp_path, demo.QUICK)
    with pytest.raises(UserError, match="another size"):
        demo.claim_folder(tmp_path, demo.FULL)


def test_files_of_something_else_are_no_steps_already_done(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="already holds files"):
        demo.claim_folder(tmp_path, demo.QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        demo.claim_folder(file, demo.QUICK)
