"""Every label file of every distribution, broken in the ways downloads and editors break them."""

from __future__ import annotations

import re

import pytest
from source_fixtures import fixtures, root_of

from data_pipeline.inspect import candidates
from data_pipeline.sources import get_source
from data_pipeline.sources.base import IMAGE_SUFFIXES
from face_mllm.errors import UserError

MODULES = list(fixtures())
TEXT = {".txt", ".csv", ".lst", ".json", ".jsonl"}
BOM = b"\xef\xbb\xbf"


def broken(data):
    """What may lie where a label file should; None is a folder of its name."""
    yield "binary", b"\xf0\xff\x00\x81PAR1" * 40
    yield "empty", b""
    yield "cut short", data[: len(data) * 2 // 3]
    yield "another encoding", data.decode("utf-8", "ignore").encode("utf-16")
    yield "Latin letters", data.replace(b"\n", b"\n\xe9", 2)
    yield "a web page", b"<!DOCTYPE html><html><body>404</body></html>\n"
    yield "letters for numbers", data.replace(b"1", b"x")
    yield "a folder", None


def saved_again(data):
    """What other systems make of a text that says the same."""
    lines = data.removeprefix(BOM).replace(b"\r\n", b"\n")
    yield "CRLF", lines.replace(b"\n", b"\r\n")
    yield "a mark in front", BOM + lines
    yield "blank lines behind", lines.rstrip() + b"\n\n   \n"
    yield "no end of line", lines.rstrip()
    yield "blanks behind lines", lines.replace(b"\n", b" \n")


def read(module, case, root):
    source = get_source(module.NAME)
    options = source.options(**case.options)
    protocol = source.protocol(case.protocol, options)
    return list(source.read_rows(root_of(module, root), options, protocol))


def detected(module, root):
    detect = get_source(module.NAME).detect
    return detect(root) if detect else None


def told(attempt):
    """What the user is told; nothing where what is left can still be read."""
    try:
        attempt()
    except UserError as error:
        return error


def label_files(root):
    """One of each kind: numbers in names do not tell files apart."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    labels = (path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
    kinds = {re.sub(r"\d+", "", str(path.relative_to(root))): path for path in labels}
    return list(kinds.values())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_a_broken_file_is_told_in_a_line_with_its_remedy(module, tmp_path):
    module.write(tmp_path)
    for path in label_files(tmp_path):
        whole = path.read_bytes()
        for how, data in broken(whole):
            path.unlink()
            if data is None:
                path.mkdir()
            else:
                path.write_bytes(data)
            tries = [lambda case=case: read(module, case, tmp_path) for case in module.CASES]
            for attempt in (lambda: detected(module, tmp_path), *tries):
                error = told(attempt)
                assert error is None or (error.remedy and "\n" not in str(error)), (how, error)
            if data is None:
                path.rmdir()
            path.write_bytes(whole)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_a_text_saved_again_reads_alike(module, tmp_path):
    module.write(tmp_path)
    expected = [read(module, case, tmp_path) for case in module.CASES]
    variant = detected(module, tmp_path)
    for path in label_files(tmp_path):
        if path.suffix.lower() not in TEXT:
            continue
        whole = path.read_bytes()
        for how, data in saved_again(whole):
            path.write_bytes(data)
            assert [read(module, case, tmp_path) for case in module.CASES] == expected, (path, how)
            assert detected(module, tmp_path) == variant, (path, how)
        path.write_bytes(whole)


def test_a_strangers_broken_file_claims_no_folder(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"na\xefve,table\n")  # FER2013 has a file of this name
    (tmp_path / "image00001.mat").write_bytes(b"")
    assert "fer2013" not in [source.name for source, _ in candidates(tmp_path)]
