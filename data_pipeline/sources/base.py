"""What a source is: a reader of one distribution, its options, its protocols.

A new dataset is one file in this package that ends in ``SOURCE = Source(...)``; nothing else has
to know it. A reader yields records without questions and :class:`Dropped` for every row it
leaves out, so the manifest can account for each one. What is data about a dataset, is data:
its protocols (splits, folds, thresholds, published counts) in ``data_pipeline/protocols/NAME.yaml``
and its label codes in ``data_pipeline/labels/codes/NAME.yaml``.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_pipeline.labels.validate import contradictions, validate_labels
from data_pipeline.protocols import Protocol
from data_pipeline.questions.forms import digest
from data_pipeline.records import FaceRecord
from face_mllm.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
LITTER = frozenset({"Thumbs.db", ".DS_Store", "__MACOSX", "desktop.ini"})
HASH_SPLIT = "hash-80-10-10"
FEW = 3  # marks that an error lists
MANY_FILES = 1_000  # of one suffix in a folder: one to a picture
SMALL_FILE = 64 * 1024

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
        as_built: (root, options) -> source, as the records name it -> the protocol it was built
            by; of readers of built datasets only.
        overlaps: names of sources with which it shares pictures or people ("fer2013" for
            MMAFEDB); `data check` reports such a pair.
    """

    name: str
    summary: str
    read_rows: Callable[[Path, Any, Protocol], Rows]
    options: type[SourceOptions] = SourceOptions
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    default_protocol: Callable[[Any], str] | None = None
    detect: Callable[[Path], Variant | None] | None = None
    licence: str = ""
    as_built: Callable[[Path, Any], Mapping[str, Protocol]] | None = None
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


def unsound(record: FaceRecord) -> Dropped | None:
    """Return why no questions can be made of a record's labels, None when they are sound."""
    if problems := validate_labels(record.labels):
        return Dropped(f"labels: {problems[0]}", record.id)
    for which, said in contradictions(record.labels):
        return Dropped(f"labels contradict each other: {which}", f"{record.id}: {said}")
    return None


@contextmanager
def reading(path: Path, *broken: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error that names it.

    Args:
        path: the file.
        broken: what else its parser raises.

    Raises:
        UserError: no such file, no file, not UTF-8 text, or broken.
    """
    caught: tuple[type[Exception], ...] = (OSError, csv.Error, *broken)
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "restore it from the distribution") from error
    except IsADirectoryError as error:
        remedy = "some unpackers make a folder of every archive: move the file out of it"
        raise UserError(f"{path}: a folder where a file belongs", remedy) from error
    except UnicodeDecodeError as error:
        said = f"byte {error.start + 1} is not UTF-8"
        raise UserError(f"{path}: not text ({said})", "save it as UTF-8, or restore it") from error
    except caught as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: {said}", "mend the row or download the file again") from error


def some(marks: Sequence[str]) -> str:
    """Return the first few of the names one is looked for by."""
    return " or ".join(dict.fromkeys(marks[:FEW])) + (" or the like" if marks[FEW:] else "")


def record_id(source: str, key: str) -> str:
    """Return ``source_key``, or the key alone where it already starts so."""
    return key if key.startswith(f"{source}_") else f"{source}_{key}"


def fingerprint(root: Path) -> str:
    """Return 16 hex digits that change when the input changes.

    Labels, lists and tables count by content; images by path and size (hashing a million
    photographs would cost more than the build). So do small annotation files that come one to a
    picture: those of at most 64 KB of which a folder holds more than 1,000 of one suffix
    (AffectNet's 1.15 million .npy, the .mat files of 300W-LP). A folder is listed once.
    """
    total = hashlib.sha256()
    for name, path, size, per_item in _files(root):
        total.update(f"{name}\0{size}\0".encode())
        if not per_item:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _files(root: Path) -> Iterator[tuple[str, Path, int, bool]]:
    """Yield (name, path, size, whether path and size say enough) of all files, in order."""
    if root.is_file():
        yield root.name, root, root.stat().st_size, _suffix(root.name) in IMAGE_SUFFIXES
        return
    for folder, inside, names in os.walk(root):
        inside.sort()
        names.sort()
        kinds = Counter(map(_suffix, names))
        place = Path(folder).relative_to(root).as_posix()
        for name in names:
            path, kind = Path(folder, name), _suffix(name)
            if not path.is_file():  # a link to nowhere
                continue
            size = path.stat().st_size
            many = kinds[kind] > MANY_FILES and size <= SMALL_FILE
            yield f"{place}/{name}", path, size, many or kind in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
