"""Faces per second of `data synth`, by number of worker processes.

    python benchmarks/synth_speed.py -n 400 --workers 1 2

Prints one JSON line per case. ``first_s`` is what a fresh process pays before its first face with
warm caches (the head model and the compiled kernels); the rate is that of the faces after it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST = (
    "from data_pipeline.synth.render import FaceRenderer as R;"
    "from data_pipeline.synth.sample import sample_face as s; R().render([s(0, 0)])"
)


def rate(faces: int, workers: int, size: int) -> tuple[float, float]:
    """Faces per second with the start of the processes, and without it."""
    from data_pipeline.synth.synthesise import synthesise

    stamps: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        synthesise(
            Path(folder) / "faces",
            faces,
            0,
            workers=workers,
            size=size,
            progress=lambda done, total, text: stamps.append((time.perf_counter(), done)),
        )
        whole = time.perf_counter() - start
    skip = min(len(stamps) - 1, 2 * workers)
    (begin, at_begin), (end, at_end) = stamps[skip - 1], stamps[-1]
    return faces / whole, (at_end - at_begin) / max(end - begin, 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST], check=True, capture_output=True)
    first = round(time.perf_counter() - start, 2)
    for workers in arguments.workers:
        whole, steady = rate(arguments.n, workers, arguments.size)
        row = {"bench": "synth_speed", "case": f"{workers} workers, {arguments.size} px"}
        row |= {"ours": round(whole, 1), "steady": round(steady, 1), "unit": "faces/s"}
        print(json.dumps(row | {"first_s": first}), flush=True)


if __name__ == "__main__":
    main()
