"""Killed half-way and started again: nothing is asked twice, and the result is the same."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from annotate_stub import ASKED, HANG, good, lines, said, serving, spec, write_faces

from data_pipeline.annotate.journal import journal_folder
from face_mllm.cli import main

pytest.importorskip("httpx2", reason="pip install 'face-mllm[annotate]'")

ROOT = Path(__file__).resolve().parents[2]


def answers(number, _before):
    """A refusal and a malformed answer among the good ones."""
    if number == 1:
        return said("I'm sorry, I can't help with that.")
    return said("no idea") if number == 2 else good(number)


def command(faces, out, stub):
    settings = {"workers": 1, "input_price": 1, "output_price": 2, "timeout": 60}
    words = ["data", "annotate", str(faces), "--out", str(out), "--yes", "--max-cost", "1"]
    return [*words, "--attributes", ",".join(ASKED), "--annotator", spec(stub, **settings)]


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def kill_while_hanging(words, stub):
    """Start the command and kill it while the server keeps it waiting."""
    process = subprocess.Popen(
        [sys.executable, "-m", "face_mllm.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert stub.hanging.wait(120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)


def test_killed_and_resumed(tmp_path):
    faces = write_faces(tmp_path / "faces", count=10)
    out, whole = tmp_path / "killed" / "out", tmp_path / "whole" / "out"
    with serving(lambda n, before: HANG if (n, before) == (6, 0) else answers(n, before)) as stub:
        words = command(faces, out, stub)
        kill_while_hanging(words, stub)
        assert not out.exists()
        journal = journal_folder(out) / "journal.jsonl"
        assert [row["id"] for row in lines(journal)] == [f"web_{n}" for n in range(6)]
        with journal.open("ab") as file:  # the kill may also tear a line
            file.write(b'{"id": "web_6", "annotator": 0, "ki')
        assert main(words) == 0
        assert stub.served == Counter({n: 2 if n == 2 else 1 for n in range(10)})
        assert main(command(faces, whole, stub)) == 0
    assert contents(out) == contents(whole)
    assert not journal_folder(out).exists()


def test_killed_after_the_last_step(tmp_path, capsys):
    """The dataset stands, the journal still lies beside it: the command only tidies up."""
    faces = write_faces(tmp_path / "faces", count=3)
    out = tmp_path / "out"
    with serving() as stub:
        words = command(faces, out, stub)
        assert main(words) == 0
        journal_folder(out).mkdir()
        assert main(words) == 0
        assert not journal_folder(out).exists()
        assert stub.served.total() == 3
        assert main(words) == 2
    assert "already holds files" in capsys.readouterr().err
