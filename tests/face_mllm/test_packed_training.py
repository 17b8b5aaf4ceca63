"""Stages with packed rows, passes, feature cache, first-batch check and curriculum."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_train import LORA, stage
from transformers import TrainingArguments

from face_mllm.artifact import read_artifact
from face_mllm.errors import UserError
from face_mllm.features import FrozenTower
from face_mllm.frozen import cache_vision
from face_mllm.model.processing import FaceProcessor
from face_mllm.model.vision import image_tokens
from face_mllm.passes import RowPasses
from face_mllm.rows import FaceRows, RowCollator, model_inputs
from face_mllm.train import run_folder, train

WEIGHTS = "projector.safetensors"

pytestmark = pytest.mark.usefixtures("cache_of_a_test")


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def same_weights(one, two):
    one, two = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_packing_and_passes_change_no_step(tiny_parts, tiny_data, tmp_path):
    variants = {
        "plain": {"pack": False},
        "packed": {"verify_packing": True},
        "passes": {"pack": False, "rows_per_pass": 3},
        "small": {"faces_per_device": 2, "accumulation": 4},
        "workers": {"workers": 2},
    }
    for name, changes in variants.items():
        settings = {"faces_per_device": 8, "max_steps": 3, **changes}
        train(stage(tiny_parts, tiny_data, tmp_path / name, **settings))
    wanted = losses(tmp_path / "plain")
    for name in variants:
        assert losses(tmp_path / name) == pytest.approx(wanted, rel=1e-4), name


def test_metrics_tell_the_realised_saving(tiny_parts, tiny_data, tmp_path):
    train(stage(tiny_parts, tiny_data, tmp_path / "s", faces_per_device=4, max_steps=2))
    lines = [json.loads(x) for x in (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "token_saving" in line]
    assert len(figures) == 2
    rows = FaceRows(tiny_data, FaceProcessor.load(tmp_path / "s"), {}, 40, 2048, 0)
    trees = [rows[visit].row for visit in range(8)]
    prefix = len(rows.processor.prefix_ids())
    assert all(row.separate > 2 * prefix for row in trees)
    saving = sum(row.separate for row in trees) / sum(len(row.tree) for row in trees)
    assert figures[-1]["token_saving"] == pytest.approx(saving, abs=1e-3)
    assert 0 <= figures[-1]["padding"] < 0.5


@pytest.fixture
def rows_of(make_model, tiny_data):
    def build(visits=None):
        model, processor = make_model()
        return model, processor, FaceRows(tiny_data, processor, {}, 2, 512, 0, visits)

    return build


class OneProcess:
    process_index, num_processes, device = 0, 1, torch.device("cpu")

    def wait_for_everyone(self):
        return None


def test_cached_states_are_the_live_ones_bit_for_bit(rows_of, tmp_path):
    model, processor, rows = rows_of(visits=20)
    faces = rows.visited()
    assert len(set(faces)) == 20
    live = [rows[visit] for visit in range(20)]
    cache_vision(model, processor, rows, OneProcess(), root=tmp_path)
    assert len(rows.states) == 20
    records = [rows.record(visit) for visit in range(20)]
    tower = FrozenTower(model.vision_tower, processor.image_processor, -1, "full")
    now = tower.states([record.open_image() for record in records])
    for visit in range(20):
        assert torch.equal(rows[visit].picture, now[visit])
    with torch.no_grad():
        pixels = torch.stack([item.picture for item in live[:16]])
        states = image_tokens(model.vision_tower, pixels, -1, "full")
        features = model.image_features(pixels)
    cached = torch.stack([rows[visit].picture for visit in range(16)])
    assert torch.equal(cached, states)
    assert torch.equal(model.project(cached), features)


def test_two_processes_share_the_work_and_each_reads_all(rows_of, tmp_path):
    class Half(OneProcess):
        num_processes = 2

        def __init__(self, index):
            self.process_index = index

    model, processor, rows = rows_of()
    cache_vision(model, processor, rows, Half(0), root=tmp_path)
    assert len(rows.states) == 12
    cache_vision(model, processor, rows, Half(1), root=tmp_path)
    assert len(rows.states) == 24


def test_a_tower_left_on_the_host_looks_on_the_device(rows_of, tmp_path, monkeypatch):
    """FSDP and DeepSpeed move the model when training begins; here the host stands for both."""

    class Sharded(OneProcess):
        device = torch.device("cuda")

    model, processor, rows = rows_of(visits=2)
    moves, fill = [], FrozenTower.fill
    monkeypatch.setattr(model.vision_tower, "to", lambda device: moves.append(device.type))

    def noted(*args):
        moves.append("fill")
        return fill(*args)

    monkeypatch.setattr(FrozenTower, "fill", noted)
    cache_vision(model, processor, rows, Sharded(), root=tmp_path)
    assert moves == ["cuda", "fill", "cpu"]


def test_training_on_cached_features_is_training_on_live_ones(
    tiny_parts, tiny_data, tmp_path, monkeypatch
):
    settings = {"max_steps": 4, "llm": {**LORA, "model": str(tiny_parts / "llm")}}
    train(stage(tiny_parts, tiny_data, tmp_path / "live", **settings))
    settings |= {"cache_features": True, "verify_packing": True}
    train(stage(tiny_parts, tiny_data, tmp_path / "cold", **settings))
    assert losses(tmp_path / "cold") == pytest.approx(losses(tmp_path / "live"), rel=1e-4)

    def never(*_):
        raise AssertionError("a warm cache needs no tower")

    monkeypatch.setattr(FrozenTower, "states", never)
    train(stage(tiny_parts, tiny_data, tmp_path / "warm", **settings))
    assert same_weights(tmp_path / "cold", tmp_path / "warm")
    vision = {"model": str(tiny_parts / "vision"), "train": "full"}
    with pytest.raises(ValueError, match="cache_features needs"):
        stage(tiny_parts, tiny_data, tmp_path / "x", cache_features=True, vision=vision)


def test_first_batch_that_differs_stops_the_run(tiny_parts, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("face_mllm.verify.TOLERANCE", {"float32": (1e-4, 0.0)})
    config = stage(tiny_parts, tiny_data, tmp_path / "s", verify_packing=True)
    with pytest.raises(UserError, match="not the separate passes"):
        train(config)
    assert not config.out.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_is_one_line_wherever_it_is_loaded(
    workers, tiny_parts, tiny_data, tmp_path
):
    asked = {"tasks": {"head_pose": 1.0}, "workers": workers}
    with pytest.raises(UserError) as caught:
        train(stage(tiny_parts, tiny_data, tmp_path / "s", **asked))
    assert re.fullmatch(r"toy_\d+: no question of tasks .* -> change `tasks` .*", str(caught.value))


def test_a_data_worker_that_dies_is_named(tiny_parts, tiny_data, tmp_path, monkeypatch):
    """A fork of this process whose memory ran out."""
    trainer, picture = os.getpid(), FaceRows.picture

    def die(rows, record):
        if os.getpid() != trainer:
            os.kill(os.getpid(), signal.SIGKILL)
        return picture(rows, record)

    monkeypatch.setattr(FaceRows, "picture", die)
    with pytest.raises(UserError, match=r"data-loading process has died.*lower workers"):
        train(stage(tiny_parts, tiny_data, tmp_path / "s", workers=1))


class KilledError(Exception):
    pass


def test_curriculum_resumes_to_the_same_weights(tiny_parts, tiny_data, tmp_path):
    settings = {
        "curriculum": {},
        "max_steps": 24,  # 96 visits: four epochs of 24 faces
        "faces_per_device": 2,
        "accumulation": 2,
        "save_steps": 5,
        "learning_rate": 1e-3,
    }
    train(stage(tiny_parts, tiny_data, tmp_path / "whole", **settings))

    def kill(step, steps, text):
        if step == 18:
            raise KilledError

    broken = stage(tiny_parts, tiny_data, tmp_path / "broken", **settings)
    with pytest.raises(KilledError):
        train(broken, kill)
    assert (run_folder(broken) / "checkpoint-15" / "curriculum.npz").exists()
    seen = []
    train(broken, lambda step, steps, text: seen.append(step))
    assert seen[0] == 16
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    plain = {**settings, "curriculum": None}
    train(stage(tiny_parts, tiny_data, tmp_path / "plain", **plain))
    one, other = losses(tmp_path / "whole"), losses(tmp_path / "plain")
    assert one[:6] == other[:6]  # the first epoch is the plain one
    assert one[6:] != other[6:]
    assert read_artifact(tmp_path / "whole").chain[0]["config"]["curriculum"]["loss_share"] == 0.5


def test_two_processes_take_the_steps_of_one(tiny_parts, tiny_data, tmp_path):
    """The cache is filled by both, and their measurements make one data order."""
    common = {
        "curriculum": {},
        "cache_features": True,
        "max_steps": 24,  # 48 visits: two epochs
        "learning_rate": 1e-3,
    }
    one = stage(tiny_parts, tiny_data, tmp_path / "one", faces_per_device=2, **common)
    train(one)
    two = stage(
        tiny_parts, tiny_data, tmp_path / "two", faces_per_device=1, rows_per_pass=1, **common
    )
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(json.loads(two.model_dump_json())))
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, "-m", *launch, "-m", "face_mllm.train", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FACE_MLLM_CACHE": str(tmp_path / "own")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(two.out) == pytest.approx(losses(one.out), rel=1e-3)


def test_processes_in_step_make_equal_passes(make_model, tiny_data, monkeypatch, tmp_path):
    """A process with fewer rows than another adds passes that change nothing."""
    model, processor = make_model(dtype=torch.float64)
    model.vision_tower.requires_grad_(False)
    rows = FaceRows(tiny_data, processor, {}, 2, 512, 0)
    batch = RowCollator(0)([rows[visit] for visit in range(3)])
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])

    def gradient(others):
        trainer = RowPasses(model, arguments, rows_per_pass=2)
        trainer.compute_loss = lambda model, inputs, **_: model(**model_inputs(inputs)).loss
        trainer.current_gradient_accumulation_steps = 1
        monkeypatch.setattr(TrainingArguments, "world_size", 2)
        trainer.accelerator.gather = lambda mine: torch.stack([mine, torch.tensor(others)])
        model.zero_grad()
        loss = trainer.training_step(model, batch)
        return loss, len(trainer._passes(batch)), model.projector[0].weight.grad.clone()

    alone, padded = gradient(1), gradient(5)
    assert (alone[1], padded[1]) == (2, 5)
    assert alone[0] == padded[0]
    assert torch.equal(alone[2], padded[2])
