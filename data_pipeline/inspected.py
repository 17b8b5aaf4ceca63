"""What ``data inspect`` found, and its report for a terminal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from data_pipeline.labels.action_units import ACTIVE_THRESHOLD
from data_pipeline.protocols import Protocol
from data_pipeline.records import SPLITS, FaceRecord
from data_pipeline.sources import Dropped, Source, Variant
from data_pipeline.sources.base import unsound
from data_pipeline.tables import Progress, rendered
from data_pipeline.tally import Drops, LabelTally

SAMPLE = 20_000
MAX_LISTED = 5
FEW_WORDS = 12


@dataclass
class Pictures:
    """A fair sample of the picture files a reader listed (Vitter 1985, algorithm R).

    Args:
        limit: most paths kept; up to here all of them are.
        listed: paths seen.
        embedded: pictures that come as bytes with the labels.
        missing: of the sample, those that are not there or are empty.
    """

    limit: int = SAMPLE
    listed: int = 0
    embedded: int = 0
    sample: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, image: bytes | str) -> None:
        """Take in the picture of one record."""
        if isinstance(image, bytes):
            self.embedded += 1
            return
        self.listed += 1
        if len(self.sample) < self.limit:
            self.sample.append(image)
        elif (place := self._random.randrange(self.listed)) < self.limit:
            self.sample[place] = image

    def look(self, progress: Progress) -> None:
        """Look for every sampled file on the disk."""
        for done, name in enumerate(self.sample, start=1):
            if not _has_bytes(Path(name)):
                self.missing.append(name)
            progress(done, len(self.sample), "looking for pictures")


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


@dataclass
class Reading:
    """What came out of one protocol.

    Args:
        protocol: it and its published counts.
        found: split -> faces.
        expressions: split -> expression -> faces.
        tally: counts of label words and numbers, all splits together.
        keys: label key -> faces that have it.
        drops: rows left out, with reasons.
        error: why the reader stopped, empty when it did not.
    """

    protocol: Protocol
    found: Counter[str] = field(default_factory=Counter)
    expressions: dict[str, Counter[str]] = field(default_factory=dict)
    tally: LabelTally = field(default_factory=LabelTally)
    keys: Counter[str] = field(default_factory=Counter)
    drops: Drops = field(default_factory=Drops)
    pictures: Pictures = field(default_factory=Pictures)
    error: str = ""

    def add(self, row: FaceRecord | Dropped) -> None:
        """Count one row as ``data build`` would take it."""
        if isinstance(row, FaceRecord):
            row = unsound(row) or row
        if isinstance(row, Dropped):
            self.drops.add(row)
            return
        self.found[row.split] += 1
        self.tally.add(row, self.protocol.targets.get("active_threshold", ACTIVE_THRESHOLD))
        self.keys.update(row.labels.keys())
        if word := row.labels.get("expression"):
            self.expressions.setdefault(row.split, Counter())[word] += 1
        self.pictures.add(row.image)

    def differences(self) -> dict[str, int]:
        """Return split (or ``all``) -> faces found minus published, where a count is published."""
        return {
            split: self.found.get(split, 0) - count if split in SPLITS else self.faces - count
            for split, count in self.protocol.published.items()
        }

    def misnamed(self) -> list[tuple[str, Counter[str], Mapping[str, int]]]:
        """Return (split, found, published) where expressions are not as often as published."""
        found = ((split, self.expressions.get(split, Counter())) for split in self.by_word)
        return [(s, count, self.by_word[s]) for s, count in found if count != self.by_word[s]]

    @property
    def by_word(self) -> Mapping[str, Mapping[str, int]]:
        """Split -> expression -> faces as published."""
        return self.protocol.published_expressions

    @property
    def faces(self) -> int:
        """Faces of all splits."""
        return self.tally.faces

    @property
    def ok(self) -> bool:
        """Whether it read, found every picture it looked for, and agrees with the literature."""
        differs = any(self.differences().values()) or bool(self.misnamed())
        return bool(self.faces) and not (self.error or differs or self.pictures.missing)


@dataclass
class Inspection:
    """What :func:`inspect` found under one root.

    Args:
        variant: the distribution recognised, None where the reader does not tell.
    """

    source: Source
    root: Path
    variant: Variant | None
    readings: list[Reading] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is missing and no count differs."""
        complete = self.variant is None or not self.variant.missing
        return complete and all(reading.ok for reading in self.readings)

    @property
    def text(self) -> str:
        """The whole report for this terminal."""
        return rendered(*_parts(self))


def _parts(found: Inspection) -> Iterator[RenderableType]:
    seen = found.variant.name if found.variant else "its reader names no variant"
    if found.variant is None and found.source.detect:
        seen = "not the layout its reader knows"
    yield Text.assemble((found.source.name, "bold"), f": {seen}")
    if found.variant:
        yield from (Text(f"missing: {name}", style="red") for name in found.variant.missing)
        yield from (Text(f"note: {note}") for note in found.variant.notes)
    for reading in found.readings:
        yield from _reading_parts(reading)


def _reading_parts(reading: Reading) -> Iterator[RenderableType]:
    yield Text("")
    about = f" ({reading.protocol.about})" if reading.protocol.about else ""
    yield Text.assemble("protocol ", (reading.protocol.name, "bold"), about)
    if reading.error:
        yield Text(f"stopped: {reading.error}", style="red")
    yield _counts(reading)
    for split, found, published in reading.misnamed() if reading.faces else ():
        yield from _expressions(split, found, published)
    if reading.faces:
        yield _labels(reading)
    if reading.drops.counts:
        yield _drops(reading.drops)
    yield from _picture_lines(reading.pictures)


def _counts(reading: Reading) -> Table:
    table = Table("split", box=None, pad_edge=False)
    for name in ("faces found", "published", "difference"):
        table.add_column(name, justify="right")
    differences, published = reading.differences(), reading.protocol.published
    for split in (*SPLITS, *(name for name in published if name not in SPLITS)):
        count = reading.found[split] if split in SPLITS else reading.faces
        if split not in published and not count:
            continue
        known = split in published
        gap = differences.get(split, 0)
        style = "red" if gap else ""
        cells = (f"{published[split]:,}", f"{gap:+,}" if gap else "0") if known else ("-", "-")
        table.add_row(split, f"{count:,}", *cells, style=style)
    if not table.row_count:
        table.add_row("(no faces)", "0", "-", "-", style="red")
    return table


def _expressions(
    split: str, found: Mapping[str, int], published: Mapping[str, int]
) -> Iterator[RenderableType]:
    table = Table(f"expressions of {split}", box=None, pad_edge=False)
    for name in ("faces found", "published", "difference"):
        table.add_column(name, justify="right")
    for word in dict.fromkeys((*published, *found)):
        here, there = found.get(word, 0), published.get(word, 0)
        gap = f"{here - there:+,}" if here != there else "0"
        table.add_row(word, f"{here:,}", f"{there:,}", gap, style="red" if here != there else "")
    yield table
    if sorted(found.values()) == sorted(published.values()):
        said = "the published counts under other words: this copy numbers its classes otherwise"
        yield Text(said, style="red")


def _labels(reading: Reading) -> Table:
    table = Table("label", "of", box=None, pad_edge=False)
    for name in ("known", "unknown"):
        table.add_column(name, justify="right")
    table.add_column("values")
    for label, name, known, values in _label_rows(reading):
        table.add_row(label, name, f"{known:,}", f"{reading.faces - known:,}", Text(values))
    return table


def _label_rows(reading: Reading) -> Iterator[tuple[str, str, int, str]]:
    """Yield (label, name, faces that have it, values); families name by name."""
    told = set()
    for (key, name), words in sorted(reading.tally.words.items(), key=_by_number):
        told.add(key)
        yield key, "" if name == "all" else name, words.total(), _words(words)
    for name, numbers in sorted(reading.tally.numbers.items()):
        told.add("age" if name == "age" else "head_pose")
        span = f"{numbers.low:.4g} to {numbers.high:.4g}, mean {numbers.mean:.4g}"
        yield name, "", numbers.n, span
    yield from ((key, "", n, "") for key, n in sorted(reading.keys.items()) if key not in told)


def _by_number(row: tuple[tuple[str, str], object]) -> tuple[str, int, str]:
    """AU2 stands before AU12; names without a number keep to the alphabet."""
    key, name = row[0]
    number = name.removeprefix("AU")
    return key, int(number) if number.isdigit() else 0, name


def _words(words: Counter[str]) -> str:
    listed = [f"{word} {count:,}" for word, count in words.most_common(FEW_WORDS)]
    more = len(words) - len(listed)
    return ", ".join(listed) + (f", {more} more" if more > 0 else "")


def _drops(drops: Drops) -> Table:
    table = Table("left out", "rows", "such as", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for reason, count in drops.counts.most_common():
        table.add_row(Text(reason), f"{count:,}", Text("; ".join(drops.examples[reason][:2])))
    return table


def _picture_lines(pictures: Pictures) -> Iterator[Text]:
    if pictures.embedded:
        yield Text(f"pictures: {pictures.embedded:,} inside the label files")
    if not pictures.listed:
        return
    looked = "all"
    if pictures.listed > len(pictures.sample):
        looked = f"a seeded sample of {len(pictures.sample):,}"
    gone = len(pictures.missing)
    said = f"{pictures.listed:,} files listed, {looked} looked for, {gone:,} missing or empty"
    yield Text(f"pictures: {said}", style="red" if gone else "")
    yield from (Text(f"  {name}") for name in pictures.missing[:MAX_LISTED])
