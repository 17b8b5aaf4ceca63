"""The same picture twice: by content, and by looks across splits, sources and datasets."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.findings import Finding
from data_pipeline.looks import HASH_BITS, Hashes, both_hashes, near_pairs
from data_pipeline.questions.forms import digest
from data_pipeline.records import FaceRecord
from data_pipeline.tables import Progress
from data_pipeline.tally import label_words

WORDS = ("expression", "gender", "age_band")  # labels in which two sources may contradict


class Part(NamedTuple):
    """The faces of one source in one split of a dataset; one dataset alone has no name."""

    dataset: str
    source: str
    split: str

    def __str__(self) -> str:
        return f"{self.split} of {self.dataset}" if self.dataset else self.split


class Shared(NamedTuple):
    """How many pictures two sources were seen to share: within one split, and across splits."""

    within: int
    across: int


class _First(NamedTuple):
    """Where a picture was met first and what was said of it."""

    id: str
    part: Part
    labels: int
    words: tuple[str | None, ...]


class Twins:
    """Collects hashes of pictures (some 600 bytes a face) and finds those that are the same."""

    def __init__(self) -> None:
        self._first: dict[bytes, _First] = {}
        self._looks: dict[Part, bytearray] = defaultdict(bytearray)
        self._mirrors: dict[Part, bytearray] = defaultdict(bytearray)
        self._ids: dict[Part, list[str]] = defaultdict(list)
        self._shared: Counter[tuple[str, str, bool]] = Counter()

    def add(self, record: FaceRecord, part: Part, image: Image.Image) -> Iterator[Finding]:
        """Take in one picture; yield what is wrong where the same pixels were met before."""
        content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()[:16]
        words = tuple(record.labels.get(key) for key in WORDS)
        found = _First(record.id, part, digest(sorted(label_words(record.labels))), words)
        met = self._first.setdefault(content, found)
        if met is found:
            plain, mirrored = both_hashes(image)
            self._looks[part] += plain.tobytes()
            self._mirrors[part] += mirrored.tobytes()
            self._ids[part].append(record.id)
            return
        self._count(met.part, part)
        yield from _same_pixels(met, found)

    def alike(self, progress: Progress) -> Iterator[Finding]:
        """Yield the pictures that look the same, as they are or mirrored.

        Compared are parts of different splits or sources; within one, frames of a video look
        alike by nature.
        """
        pairs = [(a, b) for a, b in combinations(sorted(self._looks), 2) if a[1:] != b[1:]]
        for done, (one, other) in enumerate(pairs, start=1):
            yield from self._near(one, other, self._looks, "near-duplicate", "look the same")
            yield from self._near(one, other, self._mirrors, "mirror image", "mirror each other")
            progress(done, len(pairs), "comparing")

    def shared(self, one: str, other: str) -> Shared:
        """Return how many pictures two sources share, as far as they were seen to."""
        low, high = sorted((one, other))
        return Shared(self._shared[low, high, False], self._shared[low, high, True])

    def _near(
        self, one: Part, other: Part, hashes: dict[Part, bytearray], kind: str, said: str
    ) -> Iterator[Finding]:
        leak = one.split != other.split
        for a, b, bits in near_pairs(_array(self._looks[one]), _array(hashes[other])):
            self._count(one, other)
            where = f"{self._ids[one][a]} ({one}), {self._ids[other][b]} ({other})"
            detail = f"{said} ({bits} of {HASH_BITS} hash bits differ)"
            yield Finding(kind if leak else f"{kind} across sources", where, detail, leak)

    def _count(self, one: Part, other: Part) -> None:
        if one.source != other.source:
            low, high = sorted((one.source, other.source))
            self._shared[low, high, one.split != other.split] += 1


def _array(hashes: bytearray) -> Hashes:
    return np.frombuffer(hashes, dtype=np.uint64).reshape(-1, HASH_BITS // 64)


def _same_pixels(met: _First, found: _First) -> Iterator[Finding]:
    where = f"{met.id} ({met.part}), {found.id} ({found.part})"
    if met.part.source == found.part.source:
        kind = "duplicate"
        if met.labels != found.labels:
            yield Finding("label conflict", where, "one picture, two sets of labels")
    else:
        kind = "duplicate across sources"
        words = zip(WORDS, met.words, found.words, strict=True)
        for key, one, other in words:
            if one and other and one != other:
                detail = f"one picture, {key} {one} and {other}"
                yield Finding("label conflict across sources", where, detail, problem=False)
    across = met.part.split != found.part.split
    yield Finding("duplicate across splits" if across else kind, where, "the same pixels", across)
