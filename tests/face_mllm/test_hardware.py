"""Device, dtype, threads and memory: chosen by capability, overridable, explained."""

import ctypes

import psutil
import pytest
import torch

from face_mllm import hardware
from face_mllm.errors import UserError
from face_mllm.hardware import (
    best_dtype,
    choose_hardware,
    data_workers,
    for_precision,
    release_memory,
    usable_cpus,
    usable_memory,
)


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch, tmp_path):
    """No environment wishes and no cgroup."""
    for name in ("FACE_MLLM_DEVICE", "FACE_MLLM_DTYPE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)


def test_choice_is_explained():
    chosen = choose_hardware(device="cpu")
    assert chosen.torch_dtype in (torch.bfloat16, torch.float32)
    assert chosen.reason in chosen.describe()


@pytest.mark.parametrize("native, dtype", [(True, "bfloat16"), (False, "float32")])
def test_cpu_takes_bf16_only_where_it_is_native(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    chosen, reason = best_dtype("cpu")
    assert chosen == dtype
    assert "AVX512_BF16" in reason


@pytest.mark.parametrize("capability, dtype", [((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_cuda_takes_bf16_only_where_it_is_native(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    chosen, reason = best_dtype("cuda:0")
    assert chosen == dtype
    assert "A GPU" in reason


def test_wishes_are_kept_and_marked(monkeypatch):
    assert choose_hardware(device="cpu", dtype="float32", threads=3).threads == 3
    monkeypatch.setenv("FACE_MLLM_DTYPE", "bfloat16")
    monkeypatch.setattr(hardware, "best_dtype", lambda _device: ("float32", "no native bf16"))
    chosen = choose_hardware(device="cpu")
    assert (chosen.dtype, chosen.reason) == ("bfloat16", "asked for, against: no native bf16")


@pytest.mark.parametrize(
    "wish, words",
    [
        ({"device": "tpu"}, "choose cpu, cuda"),
        ({"device": "cuda:x"}, "choose cpu, cuda"),
        ({"device": "cuda:99"}, "not on this machine"),
        ({"device": "cpu", "dtype": "float16"}, "bfloat16, float32"),
    ],
)
def test_wishes_the_machine_cannot_fulfil(wish, words):
    with pytest.raises(UserError, match=words):
        choose_hardware(**wish)


@pytest.mark.parametrize(
    "quota, cpus", [("100000 100000", 1), ("150000 100000", 2), ("max 100000", 8), ("", 8)]
)
def test_threads_respect_the_cgroup(monkeypatch, tmp_path, quota, cpus):
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cpus() == cpus


def test_threads_respect_omp_num_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_cpus() == 1


def test_memory_respects_the_cgroup(tmp_path):
    free = usable_memory()
    assert free > 0
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("400000")
    assert usable_memory() == 600000
    (tmp_path / "memory.max").write_text("max")
    assert usable_memory() > 600000


@pytest.mark.parametrize("word, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_words_of_the_configs(word, dtype):
    hardware = for_precision(word)
    assert (hardware.torch_dtype, hardware.autocast) == (dtype, word == "bf16")
    with pytest.raises(UserError, match="auto, bf16 or fp32"):
        for_precision("half")


@pytest.mark.parametrize("cpus, processes, found", [(16, 1, 4), (16, 4, 3), (8, 8, 0), (3, 1, 2)])
def test_an_accelerator_gets_data_workers_and_a_cpu_none(cpus, processes, found, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cpus), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what accelerate's launcher sets
    assert data_workers(None, "cuda") == found
    assert data_workers(None, "cpu") == 0
    assert data_workers(7, "cpu") == 7


def test_memory_goes_back_to_the_system():
    def resident():
        return psutil.Process().memory_info().rss

    pieces = [bytes(100_000) for _ in range(1000)]  # below glibc's threshold for own mappings
    kept = pieces[::100]  # holes, which free() alone keeps
    full = resident()
    del pieces
    release_memory()
    assert resident() < full - 50e6 or not hasattr(ctypes.CDLL(None), "malloc_trim")
    assert len(kept) == 10
