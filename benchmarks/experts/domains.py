"""Faces of two domains: synthetic ones drawn from the generator, photographs by subset.

Source: 15 to 50 years, lighter skin, light from the front. Target: over 50, darker skin, light from
one side. Everything else is drawn alike, and no identity is in both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from data_pipeline.labels.expressions import CLASS_SETS
from data_pipeline.records import FaceRecord, read_manifest, write_dataset
from data_pipeline.sources.base import hash_split

CLASSES = CLASS_SETS["basic7"]
PHOTOGRAPHED = tuple(name for name in CLASSES if name != "fear")  # 16 photographs of it
SEED, BATCH = 4711, 16
LFW_SPLIT = "hash-60-20-20"
COVERED = 0.3  # of the picture's side: the bar over eyes or mouth


def is_source(spec) -> bool:
    return 15 <= spec.age < 50 and spec.melanin < 0.5 and abs(spec.light_azimuth) <= 25


def is_target(spec) -> bool:
    return spec.age >= 50 and spec.melanin > 0.5 and abs(spec.light_azimuth) > 25


def synthetic(out: Path, size: int, train: int, test: int) -> None:
    """Write ``source`` (train, val, test), ``target`` and ``target_occluded`` (test)."""
    splits = {"train": train, "val": max(len(CLASSES) * 20, train // 8), "test": test}
    _write(out / "source", rendered(is_source, 0, splits, size), "synth/shift-source")
    target = list(rendered(is_target, 1_000_000, {"test": test}, size))
    _write(out / "target", iter(target), "synth/shift-target")
    covered = (occluded(record) for record in target)
    _write(out / "target_occluded", covered, "synth/shift-target-occluded")


def rendered(wanted, first: int, splits: dict[str, int], size: int) -> Iterator[FaceRecord]:
    """Faces of a domain with one of the seven expressions, in order of their index."""
    from data_pipeline.synth.render import FaceRenderer
    from data_pipeline.synth.sample import sample_face
    from data_pipeline.synth.synthesise import record_of

    renderer, index, specs = FaceRenderer(size=size), first, []
    for split, count in splits.items():
        left = count
        while left:
            spec = sample_face(SEED, index, split)
            index += 1
            if not wanted(spec) or spec.prototype not in CLASSES:
                continue
            specs.append(spec)
            left -= 1
            if len(specs) == BATCH or not left:
                images = renderer.render(specs)
                yield from (record_of(s, i) for s, i in zip(specs, images, strict=True))
                specs = []


def occluded(record: FaceRecord) -> FaceRecord:
    """The same face under a bar of one colour over eyes or mouth, as its id decides."""
    with Image.open(io.BytesIO(record.image)) as image:
        pixels = np.asarray(image.convert("RGB")).copy()
    side = pixels.shape[0]
    draw = np.random.default_rng([int(c) for c in record.id.encode()])
    centre = (0.42, 0.68)[int(draw.integers(2))] + draw.uniform(-0.04, 0.04)
    top = int(side * (centre - COVERED / 2))
    pixels[top : top + int(side * COVERED)] = draw.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return dataclasses.replace(record, image=buffer.getvalue())


def photographs(table: Path, out: Path, most: int) -> None:
    """LFW faces as source (60, 20, 20 % by person), the other subset as target.

    Args:
        table: parquet with id, image, subject, subset and expression.
        out: folder of the two datasets.
        most: faces of one class in the source, the first by hash of id; two classes are nine
            tenths of the photographs.
    """
    rows = pq.read_table(table, columns=["id", "subset", "expression"]).to_pylist()
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    taken, kept = Counter(), set()
    for row in rows:
        word = row["expression"]
        if word in PHOTOGRAPHED and (row["subset"] != "LFW" or taken[word] < most):
            taken[word] += row["subset"] == "LFW"
            kept.add(row["id"])
    records = [_photograph(row) for row in pq.read_table(table).to_pylist() if row["id"] in kept]
    lfw = [r for r in records if r.source == "LFW"]
    source = (dataclasses.replace(r, split=hash_split(r.subject, LFW_SPLIT)) for r in lfw)
    _write(out / "source", source, "mux/lfw", PHOTOGRAPHED)
    shared = {r.subject for r in lfw}
    target = (r for r in records if r.source != "LFW" and r.subject not in shared)
    _write(out / "target", target, "mux/other", PHOTOGRAPHED)


def _photograph(row: dict) -> FaceRecord:
    labels = {"expression": row["expression"]}
    who = row["subject"] or row["id"]
    image = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    return FaceRecord(row["id"], row["subset"], "test", who, image, labels)


def classes_of(root: Path) -> tuple[str, ...]:
    """The classes of a benchmark's folder, in order."""
    return tuple(read_manifest(root / "source")["classes"])


def test_sets(root: Path) -> list[str]:
    """The sets of a benchmark's folder that are tested on, by name."""
    return sorted(path.parent.name for path in root.glob("*/manifest.json"))


def once(out: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder unless it is there; what a broken run left is taken away first."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out.with_name(f"{out.name}.run"), ignore_errors=True)
        print(f"{out.parent.name}/{out.name} ...", flush=True)
        make(out)
    return out


def _write(
    folder: Path, records: Iterator[FaceRecord], protocol: str, classes: tuple[str, ...] = CLASSES
) -> None:
    with write_dataset(folder) as writer:
        for record in records:
            writer.add(record)
        about = {"sources": [{"source": protocol.split("/")[0], "protocol": protocol}]}
        about |= {"counts": writer.counts, "seed": SEED, "classes": classes}
        (writer.folder / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")
