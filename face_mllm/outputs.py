"""Where a verb writes: refused at once if it could not be written; there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from face_mllm.errors import UserError


def check_out(out: Path | str) -> None:
    """Refuse a folder that cannot be written, before hours are spent on what goes into it.

    Args:
        out: new or empty folder; what is above it need not exist.

    Raises:
        UserError: it holds files, is a file or lies below one, or nothing may be written there.
    """
    out = Path(out)
    check_writable(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder", "choose another folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} already holds files", "choose another folder or remove it")


def check_writable(path: Path) -> None:
    """Refuse a path beside which nothing may be written.

    Raises:
        UserError: it lies below a file or in a folder without leave to write.
    """
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise UserError(f"{place} is a file, not a folder", "choose another folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"{place}: nothing may be written there", "choose another folder")


def check_file(path: Path | str) -> None:
    """Refuse a file that cannot be written, before the work that goes into it.

    Raises:
        UserError: a folder has its name, it lies below a file, or nothing may be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder", "give the name of a file")
    check_writable(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to fill; rename it on success, remove it on failure."""
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
