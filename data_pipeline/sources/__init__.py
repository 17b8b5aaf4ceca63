"""One small file per dataset as distributed; each ends in ``SOURCE = Source(...)``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from rich.table import Table
from rich.text import Text

from data_pipeline.sources.base import (
    Dropped,
    Source,
    SourceOptions,
    Variant,
    fingerprint,
    hash_split,
)
from data_pipeline.tables import rendered
from face_mllm.errors import UserError

__all__ = [
    "Dropped",
    "Source",
    "SourceOptions",
    "Variant",
    "describe_sources",
    "fingerprint",
    "get_source",
    "hash_split",
    "markdown_table",
    "sources",
]


@cache
def sources() -> Mapping[str, Source]:
    """Return every registered source by name."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    return {source.name: source for source in sorted(found, key=lambda source: source.name)}


def get_source(name: str) -> Source:
    """Return one source.

    Raises:
        UserError: naming the nearest known source.
    """
    known = sources()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known sources: {', '.join(known)}"
    raise UserError(f"unknown source {name!r}", hint)


def describe_sources() -> str:
    """Return a table of what ``data build`` can read, with protocols."""
    table = Table("source", "reads", "protocols", box=None, pad_edge=False)
    for source in sources().values():
        protocols = ", ".join(source.protocols) or "named by the recipe"
        table.add_row(source.name, Text(source.summary), Text(protocols))
    return rendered(table)


def markdown_table() -> str:
    """Return the registry as the table of ``docs/readers.md``; default protocols stand first."""
    lines = [
        "| source | reads | protocols | licence | shares pictures with |",
        "|---|---|---|---|---|",
    ]
    for source in sources().values():
        protocols = ", ".join(f"`{name}`" for name in source.protocols) or "named by the recipe"
        cells = (f"`{source.name}`", source.summary, protocols, source.licence)
        overlaps = ", ".join(f"`{name}`" for name in source.overlaps)
        lines.append("| " + " | ".join(_cell(text) for text in (*cells, overlaps)) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
