"""A CLIP that has met the words of expressions rarely, as CLIPs of the web have.

``embedded:face-clip`` was taught expressions and facial actions by captions and by label heads, so
a head above it has nothing to add. This one has the same towers and learns from captions of who is
seen, hair, skin, what is worn, pose and light; only a share of its faces has a caption that may
speak of the expression or of actions, and no label head knows either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from domains import once

from data_pipeline.records import FaceRecord, iter_records, write_dataset
from data_pipeline.synth.synthesise import synthesise
from face_mllm.progress import Progress
from face_mllm.train import main as train

SEED = 9102  # of its faces: none is in the benchmark's sets
SIZE, VAL = 144, 250
UNSPOKEN = ("expression", "action_units", "facial_actions")
# no label head knows what is unspoken; half the pixels of face-clip, half the time
SETTINGS = ("loss.expression=0", "loss.action_unit=0", "image.size=80", "image.resize=92")


def general_clip(
    out: Path, faces: int, share: float, steps: int, changes: list[str], progress: Progress
) -> Path:
    """Synthesise the faces, take the words away and train; what is there is not made again.

    Args:
        out: folder of ``faces``, ``data`` and ``clip``.
        faces: to train on; 250 more measure the result.
        share: of the training faces that keep expression and actions.
        steps: of training.
        changes: further settings of ``stage_configs/embedded/face_clip.yaml``.
        progress: told of what runs.

    Returns:
        The dual-encoder folder.
    """
    splits = {"train": faces, "val": VAL}
    drawn = once(
        out / "faces",
        lambda to: synthesise(
            to, faces + VAL, SEED, splits=splits, size=SIZE, progress=progress
        ),
    )
    data = once(out / "data", lambda to: hushed(drawn, to, share))
    clip = out / "clip"
    if not clip.exists():  # an interrupted training goes on
        given = [f"data=[{data}]", f"out={clip}", f"max_steps={steps}", *SETTINGS, *changes]
        train("embedded/face_clip", given, progress)
    return clip


def hushed(faces: Path, out: Path, share: float) -> None:
    """Copy a dataset; only a share of the training faces, by hash, keeps what is to be rare.

    Val keeps all: it is measured on, never learned from.
    """
    with write_dataset(out) as writer:
        for record in iter_records(faces, ("train", "val")):
            kept = record.split != "train" or is_kept(record.id, share)
            writer.add(record if kept else _without(record))
        about = {"source": "synth", "counts": writer.counts, "seed": SEED, "share": share}
        (writer.folder / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")


def is_kept(name: str, share: float) -> bool:
    """Whether a face is in the share: a draw by hash of its id."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def _without(record: FaceRecord) -> FaceRecord:
    labels = {key: value for key, value in record.labels.items() if key not in UNSPOKEN}
    return dataclasses.replace(record, labels=labels, caption="", qa=())
