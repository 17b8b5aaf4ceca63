"""Records per second and memory of `data build`, and how fast a CelebA-sized label file is read.

    python benchmarks/build_speed.py                     # every case, some minutes
    python benchmarks/build_speed.py --cases labels encode --workers 2

Prints one JSON line per case with the target it is held to; `cpu_s` is what it took of processors,
for machines that do something else at the same time. The inputs are made on the spot: faces
with 40 attributes, an expression and an age (43 questions each in the set `compact`), and small
drawings in place of photographs. Memory is the sum over all processes of the build, pages they
share counted in each.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from data_pipeline.labels.attributes import CELEBA_ATTRIBUTES
from data_pipeline.sources import get_source

CELEBA_FACES = 202_599
WORDS = ("happy", "sad", "neutral", "fear", "angry", "surprised", "disgusted")
BUILD = """
import json, os, sys, time
from data_pipeline.build import build
if __name__ == "__main__":
    start, before = time.perf_counter(), sum(os.times()[:4])
    build(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
    print(json.dumps([time.perf_counter() - start, sum(os.times()[:4]) - before]))
"""


def drawings(count: int, side: int) -> list[bytes]:
    """JPEG files of smooth noise, about as large as photographs of their side."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_table(path: Path, faces: int, side: int) -> None:
    """Write a parquet table of labelled faces with their pictures."""
    pictures, rng = drawings(64, side), np.random.default_rng(0)
    writer: pq.ParquetWriter | None = None
    for start in range(0, faces, 1000):
        ids = range(start, min(faces, start + 1000))
        columns = {
            "id": [f"{number:07d}" for number in ids],
            "image": [pictures[number % len(pictures)] for number in ids],
            "emotion": [WORDS[place] for place in rng.integers(0, len(WORDS), len(ids))],
            "age": rng.integers(18, 90, len(ids)),
        }
        for name in CELEBA_ATTRIBUTES:
            columns[name] = np.where(rng.random(len(ids)) < 0.3, 1, -1)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=256)
    if writer:
        writer.close()


def write_recipe(folder: Path, faces: int, side: int, **changes: object) -> Path:
    """Write a table and the recipe that builds from it."""
    write_table(folder / "faces.parquet", faces, side)
    columns = {"id": "id", "image": "image", "expression": "emotion", "age": "age"}
    source = {
        "source": "table",
        "root": "faces.parquet",
        "columns": columns | {"attributes": list(CELEBA_ATTRIBUTES)},
        "values": {"attributes": {1: True, -1: False}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sources": [source], **changes}))
    return path


@dataclass(frozen=True)
class Built:
    """A build in a fresh process: seconds, CPU seconds, peak MB of its own and of all processes."""

    seconds: float
    cpu: float
    own: float
    whole: float


def built(faces: int, side: int, workers: int, **changes: object) -> Built:
    """Make a table of faces and build from it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder, faces, side, **changes)
        script = folder / "run.py"
        script.write_text(BUILD)
        command = [sys.executable, script, recipe, folder / "out", str(workers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            own, whole = _watched(process)
            said = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(f"the build failed with {process.returncode}")
        return Built(*json.loads(said), own, whole)


def _watched(process: subprocess.Popen[str]) -> tuple[float, float]:
    own = whole = 0.0
    while process.poll() is None:
        sizes = list(_sizes(process.pid))
        own, whole = max(own, *sizes[:1], 0), max(whole, sum(sizes))
        time.sleep(0.05)
    return own, whole


def _sizes(pid: int) -> Iterator[float]:
    """MB of a process and of its children; one that is just ending counts nothing."""
    try:
        main = psutil.Process(pid)
        processes = [main, *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            yield process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            yield 0.0


def write_celeba(folder: Path, faces: int) -> None:
    """Write CelebA's three lists without pictures."""
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((faces, 40)) < 0.3, " 1", "-1")
    files = [f"{number:06d}.jpg" for number in range(1, faces + 1)]
    with (folder / "list_attr_celeba.txt").open("w") as file:
        file.write(f"{faces}\n{' '.join(CELEBA_ATTRIBUTES)}\n")
        file.writelines(
            f"{name} {' '.join(row)}\n" for name, row in zip(files, signs.tolist(), strict=True)
        )
    people = rng.integers(1, 10_178, faces)
    for stem, numbers in (("list_eval_partition", people * 0), ("identity_CelebA", people)):
        lines = (f"{name} {number}\n" for name, number in zip(files, numbers, strict=True))
        (folder / f"{stem}.txt").write_text("".join(lines))


def labels_case(_workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_celeba(Path(name), CELEBA_FACES)
        source = get_source("celeba")
        options = source.options()
        start, before = time.perf_counter(), time.process_time()
        rows = source.read_rows(Path(name), options, source.protocol(None, options))
        faces = sum(1 for _ in rows)
        seconds, cpu = time.perf_counter() - start, time.process_time() - before
    report("labels", f"CelebA lists, {faces} x 40", seconds, "s", cpu, most=10)


def questions_case(workers: int, faces: int = 40_000) -> None:
    done = built(faces, 64, workers)
    case = f"{faces} records, pictures not decoded, {workers} workers"
    report("questions", case, faces / done.seconds, "records/s", done.cpu, least=2000)


def encode_case(workers: int, faces: int = 4_000) -> None:
    done = built(faces, 512, workers, images={"reencode": {"side": 224, "quality": 90}})
    case = f"{faces} pictures of 512 px re-encoded to 224 px, {workers} workers"
    report("encode", case, faces / done.seconds, "records/s", done.cpu, least=150)


def memory_case(workers: int) -> None:
    for faces in (10_000, 200_000):
        done = built(faces, 64, workers)
        case = f"{faces} records, {workers} workers, {faces / done.seconds:.0f} records/s"
        report("memory", f"{case}, reading process", done.own, "MB", done.cpu, most=1000)
        report("memory", f"{case}, all processes", done.whole, "MB", done.cpu, most=1000)


def report(name: str, case: str, value: float, unit: str, cpu: float, **target: float) -> None:
    met = value <= target["most"] if "most" in target else value >= target["least"]
    row = {
        "bench": "build_speed",
        "case": f"{name}: {case}",
        "ours": round(value, 2),
        "unit": unit,
        "cpu_s": round(cpu, 2),
        "target": target,
        "met": met,
    }
    print(json.dumps(row), flush=True)


CASES = {
    "labels": labels_case,
    "questions": questions_case,
    "encode": encode_case,
    "memory": memory_case,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    for name in arguments.cases:
        CASES[name](arguments.workers)


if __name__ == "__main__":
    main()
