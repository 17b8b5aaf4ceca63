"""Writing a fixture and reading it, for the tests of single readers."""

from __future__ import annotations

import importlib
from collections import Counter

from data_pipeline.records import FaceRecord
from data_pipeline.sources import Dropped, get_source


def written(module, root):
    """Write the fixture of a reader."""
    importlib.import_module(f"source_fixtures.{module}").write(root)
    return root


def read(name, root, protocol=None, **options):
    """Read a source as a recipe would."""
    source = get_source(name)
    options = source.options(**options)
    return list(source.read_rows(root, options, source.protocol(protocol, options)))


def records(rows):
    """Keep the faces, not what was dropped."""
    return [row for row in rows if isinstance(row, FaceRecord)]


def labels(rows):
    """Labels by id of what was read."""
    return {row.id: row.labels for row in records(rows)}


def reasons(rows):
    """How many rows were dropped, by reason."""
    return Counter(row.reason for row in rows if isinstance(row, Dropped))


def text(path, content):
    """Write a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path
