"""``rafdb_compound``: RAF-DB compound, eleven two-word expressions; laid out as RAF-DB basic."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import RESEARCH
from data_pipeline.sources.base import Rows, Source, Variant
from data_pipeline.sources.rafdb import LISTS, RafdbOptions, detect_list, list_file, read_list
from face_mllm.errors import UserError


def read_rows(root: Path, options: RafdbOptions, protocol: Protocol) -> Rows:
    """Yield one record per line of the list.

    Raises:
        UserError: no list, or a line nobody can read.
    """
    path = list_file(root, "compound")
    if path is None:
        raise UserError(f"{root}: no compound/EmoLabel/{LISTS[0]}", "point root at RAF-DB's folder")
    yield from read_list(path, "rafdb_compound", "compound_expression", options)


def detect(root: Path) -> Variant | None:
    """Recognise the list inside ``compound``, or one with its codes."""
    return detect_list(root, "compound")


SOURCE = Source(
    name="rafdb_compound",
    summary="RAF-DB compound: eleven two-word expressions, aligned crops",
    read_rows=read_rows,
    options=RafdbOptions,
    protocols=protocols("rafdb_compound"),
    detect=detect,
    licence=RESEARCH,
)
