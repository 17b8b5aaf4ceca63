"""Miniature distributions, one module per source: what is written, and what must be read of it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Case:
    """One way of reading a fixture and everything that must come out.

    Args:
        records: id -> (split, labels), all of them.
        protocol: None for the default.
        options: of the source.
        dropped: reason -> how many rows.
        subjects: id -> subject, of the records worth checking.
        boxes: id -> box, likewise.
    """

    records: dict[str, tuple[str, dict[str, Any]]]
    protocol: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, list[float]] = field(default_factory=dict)


def fixtures() -> Iterator[ModuleType]:
    """Every fixture module; each has ``NAME``, ``write(root)`` and ``CASES``, some ``ROOT``."""
    for module in pkgutil.iter_modules(__path__):
        yield importlib.import_module(f"{__name__}.{module.name}")


def root_of(module: ModuleType, root: Path) -> Path:
    """What a recipe names as root: the folder, or the file ``ROOT`` in it."""
    return root / getattr(module, "ROOT", "")


def picture(path: Path, size: tuple[int, int] = (24, 24), shade: int = 128) -> None:
    """Write a small real picture, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade // 2, 255 - shade)).save(path)
