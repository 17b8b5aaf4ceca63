"""Checkpoints: a folder that appears whole or not at all, and is believed only if its digests fit.

A checkpoint holds the trained weights as an artifact does, the optimiser's states by parameter
name, and the state of schedule, data order and random numbers, all as safetensors and json. It does
not depend on how the run was spread: any number of processes under DDP, DeepSpeed or FSDP2 goes on
from a checkpoint of any other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from face_mllm.errors import UserError
from face_mllm.outputs import write_whole

DIGESTS_FILE = "digests.json"
MOMENTS_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"
NAME = re.compile(r"checkpoint-(\d+)")
_ASIDE = ".partial-"  # half-written and half-deleted folders; never read, removed when met
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def writing(run: Path, step: int) -> Iterator[Path]:
    """Give a folder to fill; it becomes ``checkpoint-STEP`` once every byte is on the disk.

    Raises:
        UserError: the disk is full or fails; what was there before is untouched.
    """
    final = run / f"checkpoint-{step}"
    partial = run / f"{_ASIDE}{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        yield partial
        _seal(partial)
        if final.exists():
            discard(final)
        os.replace(partial, final)
        _to_disk(run)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_error(error):
            raise UserError(
                f"{final}: could not be written ({error})",
                "free disk space, then run the same command: it goes on at the checkpoint before",
            ) from error
        raise


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk is full or broken; safetensors wraps the system's error in its own."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return "No space left on device" in str(error) or "os error 28" in str(error)


def _seal(folder: Path) -> None:
    """Note a digest of every file and push all of it to the disk."""
    digests = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    (folder / DIGESTS_FILE).write_text(json.dumps(digests, indent=1) + "\n")
    for path in folder.iterdir():
        _to_disk(path)
    _to_disk(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(folder: Path) -> None:
    """Remove a checkpoint in one step for whoever looks: a kill leaves no half of it."""
    aside = folder.with_name(f"{_ASIDE}{uuid.uuid4().hex[:8]}")
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, latest first."""
    found = {int(match[1]): path for path in _entries(run) if (match := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def _entries(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []


def keep_last(run: Path, count: int) -> None:
    """Remove all but the ``count`` latest checkpoints."""
    for folder in checkpoints(run)[count:]:
        discard(folder)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; empty when every file is what was written."""
    try:
        digests = json.loads((folder / DIGESTS_FILE).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"unreadable ({error})"
    return ""


def last_good(run: Path, resume: str, say: Callable[[str], Any] = print) -> Path | None:
    """The checkpoint to go on from; damaged ones are named and passed over.

    Args:
        run: run folder.
        resume: ``auto``, ``never`` (the run folder is emptied) or a checkpoint folder.
        say: told of every checkpoint passed over.

    Returns:
        Its folder, None to start afresh.

    Raises:
        UserError: the checkpoint asked for, or every one there is, is damaged.
    """
    if resume == "never":
        shutil.rmtree(run, ignore_errors=True)
        return None
    if resume != "auto":
        found = damage(Path(resume))
        if found:
            raise UserError(f"{resume}: not a whole checkpoint ({found})", "use resume=auto")
        return Path(resume)
    for path in _entries(run):
        if path.name.startswith(_ASIDE):
            shutil.rmtree(path, ignore_errors=True)
    folders = checkpoints(run)
    for folder in folders:
        found = damage(folder)
        if not found:
            return folder
        say(f"{folder} is damaged ({found}): going back to the one before")
    if folders:
        raise UserError(
            f"{run}: no checkpoint is whole", "start again with resume=never, or restore one"
        )
    return None


def check_finite(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Refuse to keep weights that are NaN or infinite."""
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{broken[0]} is no longer finite at step {step}",
            "lower learning_rate or set precision: fp32; the last checkpoint is kept",
        )


def write_progress(folder: Path, progress: dict[str, Any]) -> None:
    """Write what is neither weight nor optimiser state: json, so read back to the last bit."""
    (folder / PROGRESS_FILE).write_text(json.dumps(progress) + "\n")


def read_progress(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_progress` wrote."""
    return json.loads((folder / PROGRESS_FILE).read_text())


def check_same_order(now: dict[str, Any], folder: Path) -> None:
    """Refuse to go on where the data would come in another order than before.

    Args:
        now: settings the order of the data depends on, ``faces_per_step`` among them.
        folder: the checkpoint.
    """
    then = read_progress(folder)["order"]
    changed = [key for key in now if json.loads(json.dumps(now[key])) != then.get(key)]
    if not changed:
        return
    key = changed[0]
    remedy = f"set {key} back, or start again with resume=never"
    if key == "faces_per_step":
        remedy = (
            "a step must keep its faces: choose accumulation so that processes x faces_per_device "
            f"x accumulation = {then.get(key)}, or start again with resume=never"
        )
    raise UserError(f"{folder}: written with {key} {then.get(key)}, now {now[key]}", remedy)


def random_state() -> dict[str, Any]:
    """State of every random number generator of this process, as json takes it."""
    name, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of ``metrics.jsonl`` that the resumed run will write again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # cut off by the kill
    write_whole(metrics, "".join(f"{line}\n" for line in kept))
