"""One progress convention: long calls take ``progress(done, total, text)``; this draws it."""

from __future__ import annotations

import logging as python_logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

# (done, total, what is being done); total 0 where it cannot be known
Progress = Callable[[int, int, str], None]

SECONDS_BETWEEN_LINES = 15.0


class Report(Protocol):
    """What :func:`terminal_progress` yields; fits callers with and without a text."""

    def __call__(self, done: int, total: int, text: str = "", /) -> None:
        """Say how far it is; see :data:`Progress`."""


@contextmanager
def terminal_progress(title: str = "") -> Iterator[Report]:
    """Yield a callback that draws a bar with the time left on stderr.

    Nothing is drawn before the first call, so what is printed earlier stays clean. Where stderr
    is no terminal, a plain line appears now and then instead.

    Args:
        title: stands before the text of each call.
    """
    shown: _Bar | _Lines = _Bar(title) if sys.stderr.isatty() else _Lines(title)
    try:
        yield shown
    finally:
        shown.stop()


def notice(text: str) -> None:
    """Say on stderr what goes on where no share of it can be told, such as a model being read."""
    from rich.console import Console

    Console(stderr=True).print(text, style="dim", markup=False, highlight=False)


def quiet_libraries() -> None:
    """Take the bars and notices of transformers off the screen; ours say what goes on."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # on import it complains that a faster kernel is not to be had from the hub
    python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)


class _Bar:
    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.task: Any = None
        self.last = (0, 0)

    def __call__(self, done: int, total: int, text: str = "", /) -> None:
        if self.bar is None:
            self._start()
        description = " ".join(part for part in (self.title, text) if part)
        if total != self.last[1] or done < self.last[0]:  # another phase: its own time left
            self.bar.reset(self.task, total=total or None)
        self.last = (done, total)
        self.bar.update(self.task, completed=done, description=description)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        # bound to the real stderr: it may be redirected while a noisy library call runs
        console = Console(file=getattr(sys.stderr, "rich_proxied_file", sys.stderr))
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeftColumn(),
        )
        self.bar = RichProgress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("", total=None)
        self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class _Lines:
    def __init__(self, title: str) -> None:
        self.title = title
        self.stream = sys.stderr
        self.last = (-SECONDS_BETWEEN_LINES, -1)

    def __call__(self, done: int, total: int, text: str = "", /) -> None:
        now, (then, before) = time.monotonic(), self.last
        if total == before and now - then < SECONDS_BETWEEN_LINES and done != total:
            return
        self.last = (now, total)
        count = f"{done}/{total}" if total else ""
        words = [part for part in (self.title, text, count) if part]
        print(*words, file=self.stream, flush=True)

    def stop(self) -> None:
        return None
