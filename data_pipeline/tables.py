"""Tables for the terminal, and the shape of progress reports."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType

Progress = Callable[[int, int, str], None]
"""Called with (done, total or 0 when unknown, what is going on)."""


def rendered(*parts: RenderableType) -> str:
    """Return Rich renderables as text for this terminal, coloured where it takes colours."""
    console = Console(highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get().rstrip()
