"""Training faces in memory: every picture decoded once into one uint8 array."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipeline.records import FaceRecord, count_faces, iter_records
from face_mllm.errors import UserError
from face_mllm.hardware import usable_cpus
from face_mllm.progress import Progress

DECODED_AT_ONCE = 512


@dataclass(frozen=True)
class Faces:
    """Decoded faces.

    Args:
        images: [faces, 3, side, side] uint8, channels last in memory.
        labels: canonical labels, one dict a face.
        subjects: who it is.
        sources: the record's source.
        licences: the record's licence.
    """

    images: torch.Tensor
    labels: list[dict[str, Any]]
    subjects: list[str]
    sources: list[str]
    licences: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def load_faces(
    roots: Sequence[Path], split: str, side: int, limit: int = 0, told: Progress | None = None
) -> Faces:
    """Decode one split of several record folders.

    Args:
        side: pictures are resized to this shorter side and cut to the central square, as the
            image processor does before its crop.
        limit: take the first so many of all, 0 for all.
        told: called with (done, total, text).

    Raises:
        UserError: no folder has that split, or a broken picture, by id.
    """
    count = sum(count_faces(root, split) for root in roots)
    if not count:
        raise UserError(
            f"{', '.join(map(str, roots))}: no {split}-*.parquet",
            "make faces with `face-mllm data synth --out DIR -n 2000`",
        )
    count = min(count, limit or count)
    pixels = np.empty((count, side, side, 3), np.uint8)
    kept: list[FaceRecord] = []
    stream = islice(chain.from_iterable(iter_records(root, [split]) for root in roots), count)
    with ThreadPoolExecutor(usable_cpus()) as pool:  # Pillow lets go of the interpreter lock
        while records := list(islice(stream, DECODED_AT_ONCE)):
            squares = pool.map(lambda record: square(record.open_image(), side), records)
            pixels[len(kept) : len(kept) + len(records)] = list(squares)
            kept += [dataclasses.replace(record, image=b"", qa=()) for record in records]
            if told:
                told(len(kept), count, f"decoding {split} faces")
    return Faces(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        [record.labels for record in kept],
        [record.subject for record in kept],
        [record.source for record in kept],
        [record.licence for record in kept],
    )


def square(image: Image.Image, side: int) -> np.ndarray:
    """Resize the shorter side (bicubic) and cut the central square, [side, side, 3] uint8."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def check_subjects(train: Faces, val: Faces) -> None:
    """Refuse splits that share a person: what is measured must be unseen identities."""
    shared = set(train.subjects) & set(val.subjects) - {""}
    if shared:
        raise UserError(
            f"train and val share {len(shared)} subjects, such as {min(shared)!r}",
            "build the data with splits by subject",
        )
