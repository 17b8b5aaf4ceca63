"""Folders built once on this machine: locked, whole or absent, checked when found again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from face_mllm.errors import UserError

SOURCE = "source.json"  # what a built folder came from, and the size of each of its files


def cache_dir() -> Path:
    """Folder for everything built once: ``FACE_MLLM_CACHE``, else the platform's cache."""
    given = os.environ.get("FACE_MLLM_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "face_mllm"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(local) / "face_mllm" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "face_mllm"


def is_whole(folder: Path) -> bool:
    """Whether every file recorded in ``source.json`` is there at its recorded size."""
    try:
        sizes = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def built_once(
    name: str, build: Callable[[Path], dict[str, object]], need_bytes: int, root: Path | None = None
) -> Path:
    """Return ``cache/name``, building it if it is not there whole.

    Two processes that want the same folder build it once: the second waits on a file lock. A
    build that fails or is killed leaves nothing that a later call would take for whole.

    Args:
        name: folder name inside the cache; change it when the build changes.
        build: fills the empty folder it is given and returns what to record of the source.
        need_bytes: free space asked for before building.
        root: the cache folder, :func:`cache_dir` if not given.

    Raises:
        UserError: the cache cannot be written or lacks space; whatever ``build`` raises.
    """
    root = cache_dir() if root is None else root
    target = root / name
    if is_whole(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not is_whole(target):
                _build(target, build, need_bytes)
    except OSError as error:
        if error.errno is None:  # raised by a library in its own words, not by the system
            raise
        raise _cache_error(error, root, need_bytes) from error
    except Exception as error:
        if "No space left on device" not in str(error):  # how safetensors reports it
            raise
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _cache_error(full, root, need_bytes) from error
    return target


def _build(target: Path, build: Callable[[Path], dict[str, object]], need_bytes: int) -> None:
    for left_over in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)  # a killed build; we hold the lock
    _check_space(target.parent, need_bytes)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        source = build(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        text = json.dumps({**source, "sizes": sizes}, indent=2)
        (partial / SOURCE).write_text(text, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)  # damaged: is_whole said so under the lock
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_space(root: Path, need_bytes: int) -> None:
    if shutil.disk_usage(root).free < need_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _cache_error(error: OSError, root: Path, need_bytes: int) -> UserError:
    remedy = "set FACE_MLLM_CACHE to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"{need_bytes / 1e6:.0f} MB"
        return UserError(f"{root}: no space left, {need} needed", f"free some or {remedy}")
    return UserError(f"{root}: cannot be written ({error.strerror or error})", remedy)
