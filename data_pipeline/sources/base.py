"""What a source is: a reader of one distribution, its options, its protocols.

A new dataset is one file in this package that ends in ``SOURCE = Source(...)``; nothing else has
to know it. A reader yields records without questions and :class:`Dropped` for every row it
leaves out, so the manifest can account for each one. What is data about a dataset, is data:
its protocols (splits, folds, thresholds, published counts) in ``data_pipeline/protocols/NAME.yaml``
and its label codes in ``data_pipeline/labels/codes/NAME.yaml``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_pipeline.protocols import Protocol
from data_pipeline.questions.forms import digest
from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LITTER = frozenset({"Thumbs.db", ".DS_Store", "__MACOSX", "desktop.ini"})
HASH_SPLIT = "hash-80-10-10"

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_HASH_SPLIT = re.compile(r"hash-(\d+)-(\d+)-(\d+)")


class SourceOptions(BaseModel):
    """Options every source takes; a source adds its own in a subclass.

    Args:
        name: goes into record ids and ``source``; empty takes the reader's default.
        licence: licence class stored with every record; empty takes the reader's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Dropped:
    """A row the reader left out: a reason that can be counted, and where it stood."""

    reason: str
    where: str


Rows = Iterator[FaceRecord | Dropped]


@dataclass(frozen=True)
class Variant:
    """What a reader recognised under a root, without reading the images.

    Args:
        name: which distribution, in words ("2021 release, npy annotations").
        missing: files or folders that belong to it and are not there, relative to the root.
        notes: what else a user should know ("list file spelt list_partition_label.txt").
    """

    name: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A registered reader.

    Args:
        name: as recipes write it.
        summary: one line for ``data sources``.
        read_rows: (root, options, protocol) -> records without qa, and dropped rows.
        options: the options model.
        protocols: protocol name -> its description and settings; the first is the default. Empty
            when the recipe names its own (generic sources).
        default_protocol: (options) -> name recorded when the recipe gives none and
            ``protocols`` is empty.
        detect: root -> the variant recognised there, None when this is another dataset. Cheap:
            looks at names and heads of files only.
        licence: licence class of the dataset, stored with every record unless the recipe says
            otherwise.
        overlaps: names of sources whose pictures it shares ("fer2013" for MMAFEDB).
    """

    name: str
    summary: str
    read_rows: Callable[[Path, Any, Protocol], Rows]
    options: type[SourceOptions] = SourceOptions
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    default_protocol: Callable[[Any], str] | None = None
    detect: Callable[[Path], Variant | None] | None = None
    licence: str = ""
    overlaps: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Callable[[str], Source], tuple[str]]:
        """Travel to worker processes by name: readers may be closures."""
        from data_pipeline.sources import get_source

        return get_source, (self.name,)

    def protocol(self, asked: str | None, options: SourceOptions) -> Protocol:
        """Return the protocol to read by and to record.

        Raises:
            UserError: when this source documents its protocols and ``asked`` is none of them.
        """
        if self.protocols and asked and asked not in self.protocols:
            raise UserError(
                f"source {self.name!r} has no protocol {asked!r}",
                f"choose from {', '.join(self.protocols)}",
            )
        if not self.protocols:
            given = self.default_protocol(options) if self.default_protocol else self.name
            return Protocol(name=asked or given)
        return self.protocols[asked or next(iter(self.protocols))]


def canonical_split(word: object) -> str | None:
    """Return train, val or test for the words datasets use, None for anything else."""
    return _SPLIT_WORDS.get(str(word).strip().lower())


def check_split_rule(rule: str) -> str:
    """Return ``rule`` when it is a hash split, for use in pydantic validators.

    Raises:
        ValueError: when it is not ``hash-A-B-C`` with percentages that sum to 100.
    """
    match = _HASH_SPLIT.fullmatch(rule)
    if not match or sum(map(int, match.groups())) != 100:
        raise ValueError(f"{rule!r} is not hash-TRAIN-VAL-TEST in percent, such as {HASH_SPLIT}")
    return rule


def hash_split(subject: str, rule: str = HASH_SPLIT) -> str:
    """Assign a subject to a split by its hash: the same in every build, no subject in two.

    Args:
        subject: person identity, prefixed by the source.
        rule: ``hash-A-B-C``, percentages of train, val and test.
    """
    match = _HASH_SPLIT.fullmatch(check_split_rule(rule))
    assert match is not None
    train, val, _ = map(int, match.groups())
    place = digest("split", subject) % 10_000 / 100
    if place < train:
        return "train"
    return "val" if place < train + val else "test"


def record_id(source: str, key: str) -> str:
    """Return ``source_key``, or the key alone where it already starts so."""
    return key if key.startswith(f"{source}_") else f"{source}_{key}"


def fingerprint(root: Path) -> str:
    """Return 16 hex digits that change when the input changes.

    Labels, lists and tables count by content; images by path and size (hashing a million
    photographs would cost more than the build).
    """
    total = hashlib.sha256()
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in paths:
        name = path.name if path == root else path.relative_to(root).as_posix()
        total.update(f"{name}\0{path.stat().st_size}\0".encode())
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
