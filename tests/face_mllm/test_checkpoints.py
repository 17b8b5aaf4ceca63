"""Checkpoint folders: whole or absent, believed only with fitting digests."""

from __future__ import annotations

import errno
import json
import random

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from face_mllm import checkpoints
from face_mllm.errors import UserError


def write(run, step, text="weights", **order):
    with checkpoints.writing(run, step) as folder:
        (folder / "w.safetensors").write_text(text)
        checkpoints.write_progress(folder, {"order": order})
    return run / f"checkpoint-{step}"


def test_folder_appears_whole_and_replaces_its_elder(tmp_path):
    with checkpoints.writing(tmp_path, 4) as folder:
        (folder / "w.safetensors").write_text("one")
        assert not (tmp_path / "checkpoint-4").exists()
    write(tmp_path, 4, "two")
    assert (tmp_path / "checkpoint-4" / "w.safetensors").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    "error,kind",
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), UserError),
        (KeyError("x"), KeyError),
    ],
)
def test_failed_writing_leaves_what_was_there(tmp_path, error, kind):
    def fail():
        with checkpoints.writing(tmp_path, 4) as folder:
            (folder / "w.safetensors").write_text("half")
            raise error

    write(tmp_path, 4, "good")
    with pytest.raises(kind):
        fail()
    assert checkpoints.damage(tmp_path / "checkpoint-4") == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_latest_by_number_is_taken_and_older_ones_go(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert checkpoints.last_good(tmp_path, "auto").name == "checkpoint-10"
    checkpoints.keep_last(tmp_path, 2)
    names = [path.name for path in checkpoints.checkpoints(tmp_path)]
    assert names == ["checkpoint-10", "checkpoint-9"]


def flip(folder):
    (folder / "w.safetensors").write_text("weighty")


def lose(folder):
    (folder / "w.safetensors").unlink()


def unsealed(folder):
    (folder / checkpoints.DIGESTS_FILE).unlink()


def cut(folder):
    (folder / checkpoints.DIGESTS_FILE).write_text('{"w.saf')


@pytest.mark.parametrize("harm", [flip, lose, unsealed, cut])
def test_damaged_one_is_named_and_the_one_before_taken(tmp_path, harm):
    write(tmp_path, 2)
    harm(write(tmp_path, 4))
    said = []
    assert checkpoints.last_good(tmp_path, "auto", said.append).name == "checkpoint-2"
    assert len(said) == 1
    assert "checkpoint-4 is damaged" in said[0]
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoints.last_good(tmp_path, str(tmp_path / "checkpoint-4"))
    harm(tmp_path / "checkpoint-2")
    with pytest.raises(UserError, match="resume=never"):
        checkpoints.last_good(tmp_path, "auto", said.append)


def test_leftovers_of_kills_are_swept(tmp_path):
    write(tmp_path, 2)
    (tmp_path / ".partial-1234").mkdir()
    checkpoints.last_good(tmp_path, "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_never_starts_afresh_and_nothing_there_is_no_checkpoint(tmp_path):
    write(tmp_path / "run", 2)
    assert checkpoints.last_good(tmp_path / "run", "never") is None
    assert not (tmp_path / "run").exists()
    assert checkpoints.last_good(tmp_path / "run", "auto") is None


def test_going_on_with_other_data_order_is_refused(tmp_path):
    folder = write(tmp_path, 2, seed=0, tasks={"age": 0.1}, faces_per_step=8)
    checkpoints.check_same_order({"seed": 0, "tasks": {"age": 0.1}, "faces_per_step": 8}, folder)
    with pytest.raises(UserError, match="seed 0, now 1"):
        checkpoints.check_same_order({"seed": 1, "faces_per_step": 8}, folder)
    with pytest.raises(UserError, match="accumulation = 8"):
        checkpoints.check_same_order({"seed": 0, "faces_per_step": 4}, folder)


def test_random_numbers_come_back_through_json():
    random.gauss(0, 1)  # leaves a spare number behind
    state = json.loads(json.dumps(checkpoints.random_state()))

    def draw():
        return [random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(3).tolist()]

    first = draw()
    checkpoints.set_random_state(state)
    assert draw() == first


def test_metrics_of_repeated_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 1}\n{"step": 3}\n{"step": 4, "lo')
    checkpoints.forget_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 1}\n'
