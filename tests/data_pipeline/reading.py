"""Writing a fixture and reading it, for the tests of single readers."""

from __future__ import annotations

import importlib

from data_pipeline.records import FaceRecord
from data_pipeline.sources import get_source


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
