"""Unlabelled faces and their two features, each computed once.

Of a built dataset only picture and caption are read: a label that is never read cannot leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from data_pipeline.records import FaceRecord, count_faces, iter_rows, shards_of
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.teachers import Teacher
from face_mllm.features import Columns, FeatureCache, FrozenClip, face_features
from face_mllm.progress import Progress

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
CAPTIONS = 512  # handed over at once: a teacher sorts them by length, which saves padding
COLUMNS = ("id", "image")


class UnlabelledFaces:
    """Faces of built datasets and of plain picture folders, streamed.

    Args:
        roots: folders; one without parquet shards is searched for pictures.
        split: of the built datasets.
        limit: the first so many of all, 0 for all.

    Raises:
        UserError: a folder that holds neither.
    """

    def __init__(self, roots: Sequence[Path], split: str = "train", limit: int = 0) -> None:
        self.split = split
        self.places = [(root, _pictures(root, split)) for root in roots]
        count = sum(_count(root, split, found) for root, found in self.places)
        self.count = min(count, limit or count)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[FaceRecord]:
        return islice(self._all(), self.count)

    def _all(self) -> Iterator[FaceRecord]:
        for root, found in self.places:
            if found is not None:
                for path in found:
                    yield FaceRecord(str(path), "", self.split, "", str(path), {})
                continue
            for row in iter_rows(root, self.split, COLUMNS):
                picture = row["image"]["bytes"] or row["image"]["path"]
                yield FaceRecord(row["id"], "", self.split, "", picture, {})

    def captions(self) -> Iterator[tuple[str, str]]:
        """Id and caption of each face; no picture is read.

        Raises:
            UserError: a face without a caption.
        """
        for name, caption in islice(self._captions(), self.count):
            if not caption.strip():
                raise UserError(
                    f"{name}: no caption, which a text teacher reads",
                    "build the data with captions, or choose teacher.kind: artifact",
                )
            yield name, caption

    def _captions(self) -> Iterator[tuple[str, str]]:
        for root, found in self.places:
            if found is not None:
                yield from ((str(path), "") for path in found)
                continue
            for row in iter_rows(root, self.split, ("id", "caption")):
                yield row["id"], row["caption"] or ""

    def check_captions(self) -> None:
        """Refuse faces without captions before anything is computed of the others."""
        for _ in self.captions():
            pass


def _pictures(root: Path, split: str) -> list[Path] | None:
    """Pictures below a plain folder; None for a built dataset."""
    if shards_of(root, split):
        return None
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder", "give a built dataset or a folder of faces")
    if not found:
        raise UserError(
            f"{root}: neither {split}-*.parquet nor pictures in it",
            "give a built dataset or a folder of faces",
        )
    return found


def _count(root: Path, split: str, found: list[Path] | None) -> int:
    return count_faces(root, split) if found is None else len(found)


def student_features(
    clip: FrozenClip, faces: UnlabelledFaces, store: Path | None, progress: Progress
) -> torch.Tensor:
    """CLIP's image features (N, D), fp32, not normalised; from the store where known."""
    told = _with_total(progress, len(faces), "CLIP features")
    return clip.features(faces, root=store, progress=told)


def teacher_features(
    teacher: Teacher, faces: UnlabelledFaces, store: Path | None, progress: Progress
) -> torch.Tensor:
    """The teacher's features (N, D), unit length in fp16; from the store where known."""
    told = _with_total(progress, len(faces), "teacher features")
    cache = FeatureCache(teacher.identity, store)

    def compute(seen: list[Any]) -> Columns:  # pictures or captions, as the teacher reads
        return {"teacher": _unit(teacher.features(seen))}

    if teacher.reads == "caption":
        keys = cache.fill(_captions(faces), compute, batch=CAPTIONS, progress=told)
    else:
        keys = face_features(cache, faces, compute, progress=told)
    return cache.gather(keys)["teacher"]


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Directions only: all the loss ever uses, and safe in half precision at any width."""
    if not torch.isfinite(features).all():
        raise UserError("the teacher gave numbers that are not finite", "set precision: fp32")
    return functional.normalize(features, dim=-1).half()


def _with_total(progress: Progress, total: int, what: str) -> Progress:
    return lambda done, _total, _text: progress(done, total, what)


def _captions(faces: UnlabelledFaces) -> Iterator[tuple[bytes, str]]:
    """Captions by their content."""
    for _, caption in faces.captions():
        yield hashlib.sha256(caption.encode()).digest(), caption


def describe(faces: UnlabelledFaces) -> dict[str, Any]:
    """What the expert folder says of its data."""
    return {"folders": [str(root) for root, _ in faces.places], "faces": len(faces)}
