"""NVIDIA Warp without its start-up notices: ``from data_pipeline.synth.quiet_warp import wp``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import warp

wp: Any = warp
if hasattr(wp, "LOG_ERROR"):  # Warp 1.19 and later
    wp.config.log_level = wp.LOG_ERROR
else:
    wp.config.quiet = True


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send the process's standard error nowhere: Warp's library writes past Python's."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


with _silent_stderr():  # it would warn of a missing CUDA driver; the faces are made on the CPU
    wp.init()
