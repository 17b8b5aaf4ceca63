"""The behaviour every reader shows, on the miniature distribution its fixture writes."""

from __future__ import annotations

from collections import Counter

import pytest
from source_fixtures import fixtures, root_of

from data_pipeline.labels.validate import validate_labels
from data_pipeline.records import FaceRecord
from data_pipeline.sources import Dropped, get_source, sources

MODULES = list(fixtures())
CASES = [
    pytest.param(module, case, id=f"{module.NAME}-{number}")
    for module in MODULES
    for number, case in enumerate(module.CASES)
]


def read(module, case, root):
    source = get_source(module.NAME)
    options = source.options(**case.options)
    protocol = source.protocol(case.protocol, options)
    return list(source.read_rows(root_of(module, root), options, protocol))


def test_every_source_is_here():
    """What this package writes itself has tests of its own."""
    assert {module.NAME for module in MODULES} == set(sources()) - {"records", "synth"}


@pytest.mark.parametrize(("module", "case"), CASES)
def test_reads_what_is_there(module, case, tmp_path):
    module.write(tmp_path)
    rows = read(module, case, tmp_path)
    records = {row.id: row for row in rows if isinstance(row, FaceRecord)}
    assert {key: (row.split, row.labels) for key, row in records.items()} == case.records
    assert Counter(row.reason for row in rows if isinstance(row, Dropped)) == case.dropped
    assert {key: records[key].subject for key in case.subjects} == case.subjects
    assert {key: list(records[key].box) for key in case.boxes} == case.boxes


@pytest.mark.parametrize(("module", "case"), CASES)
def test_records_are_sound(module, case, tmp_path):
    module.write(tmp_path)
    rows = read(module, case, tmp_path)
    assert rows == read(module, case, tmp_path)  # the same order every time
    records = [row for row in rows if isinstance(row, FaceRecord)]
    assert len({row.id for row in records}) == len(records)
    for row in records:
        assert validate_labels(row.labels) == []
        assert all(qa.task == "vqa" for qa in row.qa)  # only conversations bring questions
        assert isinstance(row.image, bytes) or row.image.startswith("/")
    splits = {(row.subject, row.split) for row in records}
    assert len(splits) == len({row.subject for row in records})  # nobody is in two splits
    for row in rows:
        if isinstance(row, Dropped):
            assert row.reason
            assert row.where


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_is_recognised(module, tmp_path):
    source = get_source(module.NAME)
    assert source.detect is None or source.detect(tmp_path) is None  # an empty folder is nothing
    module.write(tmp_path)
    if source.detect is not None:
        assert source.detect(tmp_path).name
