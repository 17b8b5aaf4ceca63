"""Faces with a class: which records of a split count, and their pictures in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from data_pipeline.records import FaceRecord, load_split, shards_of
from data_pipeline.sources.base import hash_split
from face_mllm.errors import UserError
from face_mllm.features import FrozenClip
from face_mllm.hardware import usable_cpus

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class ExpressionFaces(Sequence[FaceRecord]):
    """The faces of a split whose expression is one of the classes.

    Args:
        rows: of the split, memory-mapped, images undecoded.
        places: row of each face.
        targets: [N] class indices.
        left_out: faces not counted, by the name of their class; ``unlabelled`` for none.
    """

    rows: Any
    places: list[int]
    targets: torch.Tensor
    left_out: Counter[str]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> FaceRecord: ...

    @overload
    def __getitem__(self, at: slice) -> list[FaceRecord]: ...

    def __getitem__(self, at: int | slice) -> FaceRecord | list[FaceRecord]:
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        return FaceRecord.from_row({**self.rows[self.places[at]], "qa": ()})

    def column(self, name: str) -> list[str]:
        """One text column of the faces, in order."""
        values = self.rows[name][:]
        return [values[place] for place in self.places]

    def take(self, chosen: Sequence[int]) -> ExpressionFaces:
        """Only these faces."""
        places = [self.places[k] for k in chosen]
        return ExpressionFaces(self.rows, places, self.targets[list(chosen)], self.left_out)


def load_expressions(
    root: Path, split: str, classes: Sequence[str], remap: Mapping[str, str]
) -> ExpressionFaces:
    """Read the labels of one split.

    Classes travel by name, so two datasets need no common numbering; a class the list does not
    have is left out and counted.

    Args:
        root: built dataset.
        split: train, val or test.
        classes: names in the order of the class indices.
        remap: class -> class, applied first.

    Raises:
        UserError: no such split, no face of these classes in it, or labels that are no words.
    """
    rows = load_split(root, split).select_columns(
        ["id", "source", "split", "subject", "image", "box", "labels", "caption", "licence"]
    )
    index = {name: k for k, name in enumerate(classes)}
    places, targets, left_out = [], [], Counter[str]()
    for place, text in enumerate(rows["labels"][:]):
        name = _word(json.loads(text), f"{root}: row {place} of {split}")
        name = remap.get(name, name)
        if name in index:
            places.append(place)
            targets.append(index[name])
        else:
            left_out[name] += 1
    if not places:
        found = ", ".join(sorted(left_out)) or "nothing"
        raise UserError(
            f"{root}: no face of split {split} shows one of {', '.join(classes)} ({found} found)",
            "set `classes` to what the dataset labels, or build it with expressions",
        )
    return ExpressionFaces(rows, places, torch.tensor(targets), left_out)


def _word(labels: dict[str, Any], where: str) -> str:
    """The expression of a face, or ``unlabelled``."""
    word = labels.get("expression") or UNLABELLED
    if not isinstance(word, str):
        raise UserError(f"{where}: the expression is {word!r}, no word", "build the data again")
    return word


def source_names(manifest: Mapping[str, Any]) -> list[str]:
    """The datasets a built dataset was made of, by name."""
    return sorted({each["source"] for each in manifest.get("sources", ())})


def load_training(
    root: Path, classes: Sequence[str], remap: Mapping[str, str], val_share: float
) -> tuple[ExpressionFaces, ExpressionFaces]:
    """Training and validation faces; the test split is not opened.

    Args:
        val_share: share of the training subjects that validate, by hash, where there is no val
            split.

    Raises:
        UserError: as :func:`load_expressions`; a class without training faces; subjects in both.
    """
    train = load_expressions(root, "train", classes, remap)
    if shards_of(root, "val"):
        val = load_expressions(root, "val", classes, remap)
        shared = set(train.column("subject")) & set(val.column("subject")) - {""}
        if shared:
            raise UserError(
                f"{root}: train and val share {len(shared)} subjects, such as {min(shared)!r}",
                "build the data with splits by subject",
            )
    else:
        train, val = _hold_out(train, val_share)
    counts = train.targets.bincount(minlength=len(classes)).tolist()
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    if missing:
        raise UserError(
            f"{root}: no training face shows {', '.join(missing)}", "leave it out of `classes`"
        )
    return train, val


def _hold_out(faces: ExpressionFaces, share: float) -> tuple[ExpressionFaces, ExpressionFaces]:
    percent = max(1, min(99, round(100 * share)))
    rule = f"hash-{100 - percent}-{percent}-0"
    names = zip(faces.column("subject"), faces.column("id"), strict=True)
    held = [hash_split(subject or name, rule) == "val" for subject, name in names]
    val = [k for k, out in enumerate(held) if out]
    if not val or len(val) == len(faces):
        raise UserError(
            f"{len(faces)} faces are too few to hold out {share:.0%} of the subjects",
            "add faces, or build the data with a val split",
        )
    return faces.take([k for k, out in enumerate(held) if not out]), faces.take(val)


class Pictures:
    """CLIP's square of each face, uint8; decoded on demand and kept while memory lasts.

    Args:
        faces: whose pictures.
        clip: cuts the squares.
        most_bytes: kept at most.
    """

    def __init__(self, faces: Sequence[FaceRecord], clip: FrozenClip, most_bytes: float) -> None:
        self.faces, self.clip = faces, clip
        self.room = int(most_bytes // (3 * clip.size**2))
        self.kept: dict[int, torch.Tensor] = {}
        self.pool = ThreadPoolExecutor(usable_cpus())  # Pillow lets go of the interpreter lock

    def __getitem__(self, rows: Sequence[int]) -> torch.Tensor:
        """Squares [rows, 3, size, size]."""
        new = [row for row in dict.fromkeys(rows) if row not in self.kept]
        images = list(self.pool.map(lambda row: self.faces[row].open_image(), new))
        made = dict(zip(new, self.clip.squares(images), strict=True)) if new else {}
        self.kept.update(list(made.items())[: max(0, self.room - len(self.kept))])
        return torch.stack([made[row] if row in made else self.kept[row] for row in rows])
