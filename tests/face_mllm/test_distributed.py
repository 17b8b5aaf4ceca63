"""The same stage on one process and on several, under every shipped launch config."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_jobs as jobs
import pytest
import yaml
from launching import Launch, free_port
from safetensors.torch import load_file

from face_mllm.artifact import read_artifact
from face_mllm.configio import find_config

sys.path.append(str(Path(__file__).parents[1] / "eval"))
import eval_doubles as doubles

MODES = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")
SPLIT = {
    "ddp": [],
    "zero2": ["zero2"],
    "zero3": ["zero3"],
    "zero3_offload": ["zero3"],
    "fsdp2": ["fsdp2"],
}
FILES = ("projector.safetensors", "adapter_model.safetensors")


def stage(tiny_parts, tiny_data, out, **changes) -> dict:
    return {
        "stage": "stage2_vqa",
        "data": str(tiny_data),
        "out": str(out),
        "precision": "fp32",
        "vision": {"model": str(tiny_parts / "vision")},
        "llm": {
            "model": str(tiny_parts / "llm"),
            "train": "lora",
            "lora": {"r": 4, "alpha": 8},
        },
        "max_steps": 4,
        "faces_per_device": 1,
        "accumulation": 4,
        "learning_rate": 1e-2,
        "log_steps": 1,
        **changes,
    }


def losses(out) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def apart(one, two, files=FILES) -> float:
    """Largest difference between the trained weights of two artifacts."""
    worst = 0.0
    for name in files:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        assert first
        for key, value in first.items():
            assert value.shape == second[key].shape, key
            assert value.dtype == second[key].dtype, key
            worst = max(worst, float((value - second[key]).abs().max()))
    return worst


@pytest.fixture(scope="module")
def alone(tiny_parts, tiny_data, tmp_path_factory):
    """One process that accumulates over four micro-batches."""
    out = tmp_path_factory.mktemp("alone") / "out"
    Launch("alone", 1, jobs.train, stage(tiny_parts, tiny_data, out), log=out.parent / "log").done()
    return out


def same_run(out, alone) -> None:
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5, rel=0)
    assert losses(out)[0] == losses(alone)[0]  # before any step: equal to the last bit
    assert apart(out, alone) < 1e-5


def needs(mode: str) -> None:
    if mode.startswith("zero"):
        pytest.importorskip("deepspeed")


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_every_mode_dies_and_goes_on_in_the_next_mode(
    mode, alone, tiny_parts, tiny_data, tmp_path
):
    """Weights, optimiser, schedule and order cross over; all ends as one process ends."""
    after = MODES[(MODES.index(mode) + 1) % len(MODES)]
    needs(mode)
    needs(after)
    out = tmp_path / "out"
    settings = stage(tiny_parts, tiny_data, out, accumulation=2, save_steps=2)
    died = Launch(mode, 2, jobs.train, settings, "killed", 1, 3, log=tmp_path / "died")
    assert died.wait() == [2, -9]
    assert "another process has died" in died.text()
    assert not out.exists()
    assert f"split: {SPLIT[mode]}" in died.text()
    fast = ["blocks"] if "zero3" in mode else ["blocks", "lora"]
    assert died.text().count(f"fast: {fast}") >= 2
    Launch(after, 2, jobs.train, settings, log=tmp_path / "after").done()
    same_run(out, alone)
    assert not out.with_name("out.run").exists()


def test_parts_trained_in_full_survive_sharding(tiny_parts, tiny_data, tmp_path):
    """The LLM that trains now, and the tower an earlier stage has trained and this one freezes.

    The processes make their logits in chunks, the one they are compared with makes them whole.
    """
    llm = {"model": str(tiny_parts / "llm"), "train": "full"}
    vision = {"model": str(tiny_parts / "vision"), "train": "full"}
    more = {"learning_rate": 1e-3, "llm": llm}
    start = {"vision": vision, "max_steps": 1, "faces_per_device": 2, "accumulation": 1}
    first = stage(tiny_parts, tiny_data, tmp_path / "s1", **more, **start)
    Launch("alone", 1, jobs.train, first, log=tmp_path / "log").done()
    more |= {"init_from": str(tmp_path / "s1"), "vision": {}, "max_steps": 2}
    second = stage(tiny_parts, tiny_data, tmp_path / "alone", **more)
    Launch("alone", 1, jobs.train, second, log=tmp_path / "log").done()
    for mode in ("zero3", "fsdp2"):
        needs(mode)
        out = tmp_path / mode
        settings = stage(tiny_parts, tiny_data, out, **more, accumulation=2)
        Launch(mode, 2, jobs.train_in_chunks, settings, log=tmp_path / f"{mode}-log").done()
        assert apart(out, tmp_path / "s1", ["vision.safetensors"]) == 0
        assert apart(out, tmp_path / "alone", ["llm.safetensors", FILES[0]]) < 1e-5
        assert apart(out, tmp_path / "s1", ["llm.safetensors"]) > 1e-4  # it did train


def test_bf16_is_the_same_bf16(tiny_parts, tiny_data, tmp_path):
    """Autocast over fp32 weights under every launch, through gradient checkpointing too."""
    more = {"precision": "bf16", "gradient_checkpointing": True, "max_steps": 2}
    one = stage(tiny_parts, tiny_data, tmp_path / "one", **more)
    two = stage(tiny_parts, tiny_data, tmp_path / "two", **more, accumulation=2)
    Launch("alone", 1, jobs.train, one, log=tmp_path / "log1").done()
    Launch("fsdp2", 2, jobs.train, two, log=tmp_path / "log2").done()
    same_run(tmp_path / "two", tmp_path / "one")


def test_four_processes_give_the_loss_of_one(alone, tiny_parts, tiny_data, tmp_path):
    out = tmp_path / "out"
    settings = stage(tiny_parts, tiny_data, out, accumulation=1)
    Launch("ddp", 4, jobs.train, settings, log=tmp_path / "log").done()
    same_run(out, alone)
    counted = ("steps", "faces", "questions", "tokens")  # of all processes together
    speeds = [read_artifact(folder).chain[-1]["speed"] for folder in (out, alone)]
    assert [speeds[0][key] for key in counted] == [speeds[1][key] for key in counted]
    assert speeds[0]["questions"] == 4 * 4 * 2


def test_a_killed_pair_goes_on_alone(alone, tiny_parts, tiny_data, tmp_path):
    out = tmp_path / "out"
    pair = stage(tiny_parts, tiny_data, out, accumulation=2, save_steps=1)
    died = Launch("ddp", 2, jobs.train, pair, "killed", 0, 3, log=tmp_path / "died")
    assert died.wait()[0] == -9
    wrong = Launch("alone", 1, jobs.train, {**pair, "accumulation": 3}, log=tmp_path / "wrong")
    assert wrong.wait() == [2]
    assert "faces_per_device x accumulation = 4" in " ".join(wrong.text().split())
    Launch("alone", 1, jobs.train, {**pair, "accumulation": 4}, log=tmp_path / "after").done()
    same_run(out, alone)


@pytest.mark.parametrize(
    "mishap,rank,words",
    [
        ("full_disk", 0, "free disk space"),
        ("nan_loss", 1, "loss became nan at step 4"),
    ],
)
def test_all_processes_stop_with_the_reason_and_the_last_state_is_kept(
    mishap, rank, words, alone, tiny_parts, tiny_data, tmp_path
):
    out = tmp_path / "out"
    pair = stage(tiny_parts, tiny_data, out, accumulation=2, save_steps=3)
    step = 4 if mishap == "nan_loss" else 3
    failed = Launch("ddp", 2, jobs.train, pair, mishap, rank, step, log=tmp_path / "failed")
    assert failed.wait() == [2, 2]
    for log in failed.log.glob("*.log"):
        assert words in " ".join(log.read_text().split())
    kept = sorted(path.name for path in (tmp_path / "out.run").iterdir())
    assert kept == (["checkpoint-3"] if mishap == "nan_loss" else []) + ["metrics.jsonl"]
    Launch("alone", 1, jobs.train, {**pair, "accumulation": 4}, log=tmp_path / "after").done()
    same_run(out, alone)


def test_killed_at_any_moment_ends_in_the_same_bits(tiny_parts, tiny_data, tmp_path):
    """Dropout on: random numbers, order, schedule and optimiser must all come back."""
    llm = {"model": str(tiny_parts / "llm"), "train": "lora", "lora": {"r": 4, "dropout": 0.2}}
    more = {"llm": llm, "save_steps": 2, "max_steps": 6, "accumulation": 2}
    whole = stage(tiny_parts, tiny_data, tmp_path / "whole", **more)
    Launch("alone", 1, jobs.train, whole, log=tmp_path / "log").done()
    settings = stage(tiny_parts, tiny_data, tmp_path / "killed", **more)
    moments = [("killed", 1), ("killed_while_saving", 2), ("killed", 3), ("killed_while_saving", 4)]
    for number, (mishap, step) in enumerate([*moments, ("killed", 5)]):
        log = tmp_path / f"log{number}"
        assert Launch("alone", 1, jobs.train, settings, mishap, 0, step, log=log).wait() == [-9]
    Launch("alone", 1, jobs.train, settings, log=tmp_path / "last").done()
    assert apart(tmp_path / "whole", tmp_path / "killed") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_evaluation_on_two_processes_gives_the_same_file(alone, tmp_path_factory, tmp_path):
    data = tmp_path_factory.mktemp("evaldata") / "data"
    doubles.build(data, counts={"train": 90, "val": 24, "test": 7})
    for processes, mode in ((1, "alone"), (2, "ddp")):
        out = tmp_path / f"{processes}"
        job = (jobs.evaluate, str(alone), str(data), str(out))
        Launch(mode, processes, *job, log=tmp_path / f"log{processes}").done()
    one, two = ((tmp_path / name / "results.json").read_text() for name in "12")
    assert one == two
    assert {"majority", "linear_probe"} <= set(json.loads(one)["results"][0]["baselines"])
    assert (tmp_path / "2" / "report.html").exists()


def test_an_error_on_one_process_is_raised_on_all(tmp_path):
    launch = Launch("ddp", 2, jobs.refuse, 1, log=tmp_path)
    assert launch.wait() == [2, 2]
    assert launch.text().count("face 1 is broken") == 2


def test_accelerate_launch_itself(alone, tiny_parts, tiny_data, tmp_path):
    """The documented command, launcher and command line included."""
    mode = "zero3" if importlib.util.find_spec("deepspeed") else "fsdp2"
    config, out = tmp_path / "stage.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(stage(tiny_parts, tiny_data, out, accumulation=2)))
    words = ["--config_file", str(find_config(f"accelerate/{mode}")), "--num_processes", "2"]
    words += ["--main_process_port", str(free_port()), "-m", "face_mllm", "train", str(config)]
    subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
    )
    same_run(out, alone)
