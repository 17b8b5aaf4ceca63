"""The same stage on one process and on several, under every shipped launch config."""

from __future__ import annotations

import json

import distributed_jobs as jobs
import pytest
import torch
from launching import Launch
from safetensors.torch import load_file

MODES = ("ddp", "zero2", "zero3", "zero3_offload", "fsdp2")
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


def apart(one, two) -> float:
    """Largest difference between the trained weights of two artifacts."""
    worst = 0.0
    for name in FILES:
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
    Launch("alone", 1, jobs.train, stage(tiny_parts, tiny_data, out), log=out.parent).done()
    return out


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_what_one_process_trains(mode, alone, tiny_parts, tiny_data, tmp_path):
    if mode.startswith("zero"):
        pytest.importorskip("deepspeed")
    out = tmp_path / "out"
    settings = stage(tiny_parts, tiny_data, out, accumulation=2)
    Launch(mode, 2, jobs.train, settings, log=tmp_path / "log").done()
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5, rel=0)
    assert losses(out)[0] == losses(alone)[0]  # before any step: equal to the last bit
    assert apart(out, alone) < 1e-5
