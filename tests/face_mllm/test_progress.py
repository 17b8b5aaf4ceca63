"""Progress: lines without a terminal, a bar with the time left on one."""

import io

from face_mllm import progress
from face_mllm.progress import terminal_progress


def test_without_a_terminal_there_are_few_lines(capsys):
    with terminal_progress("training") as report:
        for step in range(1000):
            report(step, 1000, f"loss {step}")
        report(0, 0, "converting")
        report(5, 5, "done")
    assert capsys.readouterr().err.splitlines() == [
        "training loss 0 0/1000",
        "training converting",
        "training done 5/5",
    ]


def test_nothing_is_drawn_before_the_first_call(capsys):
    with terminal_progress("x"):
        print("first")
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress.sys, "stderr", screen)
    with terminal_progress("training") as report:
        report(1, 4, "loss [1]")
        report(4, 4, "loss [1]")
    assert "training loss [1]" in screen.getvalue()
    assert "100%" in screen.getvalue()
