"""A stage with an expert on one process and on two: the same steps, the same fusion."""

from __future__ import annotations

import distributed_jobs as jobs
import pytest
from joined_faces import WIDTH, write_clip, write_faces, write_mask_fer
from launching import Launch
from test_distributed import apart, losses, needs, stage

from face_mllm.experts.joined.fusion import read_fusion

FILES = ("projector.safetensors", "expert.safetensors", "expert/mask_fer.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_processor):
    root = tmp_path_factory.mktemp("processes")
    write_faces(root / "data")
    clip = write_clip(root / "clip", image_processor, WIDTH)
    write_mask_fer(root / "mask_fer", clip, root / "data")
    return root


@pytest.fixture(scope="module")
def run(place, tiny_parts, tmp_path_factory):
    """Train with mask-FER in every way that two processes could get wrong."""
    given = {"model": str(place / "mask_fer"), "token": True, "head": "full", "fusion": True}
    given |= {"loss_weight": 0.5, "head_learning_rate": 1e-3}

    def make(mode, processes):
        out = tmp_path_factory.mktemp(mode) / "out"
        changes = {"expert": given, "max_steps": 3, "accumulation": 4 // processes}
        settings = stage(tiny_parts, place / "data", out, **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FACE_MLLM_CACHE", str(out.parent / "cache"))
            Launch(mode, processes, jobs.train, settings, log=out.parent / "log").done()
        return out

    return make


@pytest.fixture(scope="module")
def alone(run):
    return run("alone", 1)


@pytest.mark.parametrize("mode", ["zero2", "fsdp2"])
def test_a_head_that_trains_along_takes_the_same_steps_on_two_processes(run, alone, mode):
    needs(mode)
    two = run(mode, 2)
    assert losses(two) == pytest.approx(losses(alone), abs=1e-5, rel=0)
    assert apart(alone, two, FILES) < 1e-5
    found, wanted = read_fusion(two), read_fusion(alone)
    if mode == "fsdp2":
        assert found is None  # `face-mllm fuse` does it afterwards
        return
    assert found.weight == wanted.weight
    assert found.temperature == pytest.approx(wanted.temperature, rel=1e-3)
