"""``data inspect``: what a downloaded folder holds, read through its own reader.

Names the distribution, reads every row once with bounded memory and sets the faces beside the
published counts. Pictures are looked for on the disk and never opened.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from data_pipeline.labels.action_units import ACTIVE_THRESHOLD
from data_pipeline.labels.expressions import find_expression
from data_pipeline.protocols import Protocol
from data_pipeline.records import SPLITS, FaceRecord
from data_pipeline.sources import Dropped, Source, SourceOptions, Variant, get_source, sources
from data_pipeline.sources.base import canonical_split, unsound
from data_pipeline.sources.folder import subfolders
from data_pipeline.tables import Progress, rendered
from data_pipeline.tally import Drops, LabelTally
from face_mllm.configio import apply_overrides, validate_model
from face_mllm.errors import UserError

SAMPLE = 20_000
TABLES = (".csv", ".tsv", ".txt", ".parquet")
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
        tally: counts of label words and numbers, all splits together.
        keys: label key -> faces that have it.
        drops: rows left out, with reasons.
        error: why the reader stopped, empty when it did not.
    """

    protocol: Protocol
    found: Counter[str] = field(default_factory=Counter)
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
        self.pictures.add(row.image)

    def differences(self) -> dict[str, int]:
        """Return split (or ``all``) -> faces found minus published, where a count is published."""
        return {
            split: self.found.get(split, 0) - count if split in SPLITS else self.faces - count
            for split, count in self.protocol.published.items()
        }

    @property
    def faces(self) -> int:
        """Faces of all splits."""
        return self.tally.faces

    @property
    def ok(self) -> bool:
        """Whether it read, found every picture it looked for, and agrees with the literature."""
        differs = any(self.differences().values())
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


def inspect(
    root: str | Path,
    source: str | None = None,
    *,
    protocol: str | None = None,
    every_protocol: bool = False,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
) -> Inspection:
    """Read what is under ``root`` and compare it with what was published.

    Args:
        root: the folder or file as downloaded.
        source: reader to use; None asks every reader whether it knows the folder.
        protocol: read by this one instead of the default.
        every_protocol: read by all of them, one after the other.
        overrides: ``key=value`` options of the source.
        progress: called with (done, total or 0, what is going on).

    Raises:
        UserError: no such root, nobody or several recognise it, unknown source, protocol or
            option, or an unreadable file while nothing is known to be missing.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise UserError(f"{root}: no such file or folder", "check the path")
    reader, variant = _recognised(root, source)
    options = _options(reader, variant, overrides)
    chosen = [reader.protocol(protocol, options)]
    if every_protocol:
        chosen = list(reader.protocols.values()) or chosen
    found = Inspection(reader, root, variant)
    for one in chosen:
        found.readings.append(_read(reader, root, options, one, progress or (lambda *_: None)))
    _raise_if_hopeless(found)
    return found


def candidates(root: Path) -> list[tuple[Source, Variant]]:
    """Return every reader that recognises ``root``, with the variant it sees."""
    return _asked(root)[0]


def _asked(root: Path) -> tuple[list[tuple[Source, Variant]], list[UserError]]:
    """Return who recognises ``root``, and what stopped those who met a broken file in it."""
    found, stopped = [], []
    for source in sources().values():
        try:
            variant = source.detect(root) if source.detect else None
        except UserError as error:
            stopped.append(UserError(f"{source.name}: {error.message}", error.remedy))
            continue
        if variant is not None:
            found.append((source, variant))
    return found, stopped


def _options(reader: Source, variant: Variant | None, overrides: Iterable[str]) -> SourceOptions:
    """Return the options; what the variant shows may be what a missing one has to be."""
    where = f"options of {reader.name!r}"
    try:
        return validate_model(apply_overrides({}, overrides), reader.options, where)
    except UserError as error:
        notes = "; ".join(variant.notes) if variant else ""
        raise UserError(error.message + (f" ({notes})" if notes else ""), error.remedy) from error


def _recognised(root: Path, name: str | None) -> tuple[Source, Variant | None]:
    if name is not None:
        reader = get_source(name)
        return reader, reader.detect(root) if reader.detect else None
    found, stopped = _asked(root)
    if not found:
        said = "".join(f"; {error.message}" for error in stopped[:1])
        raise UserError(f"{root}: no reader recognises it{said}", _generic(root, stopped))
    if len(found) > 1:
        seen = "; ".join(f"{source.name}: {variant.name}" for source, variant in found)
        names = " or ".join(f"--source {source.name}" for source, _ in found)
        raise UserError(f"{root}: several readers recognise it ({seen})", f"add {names}")
    return found[0]


def _generic(root: Path, stopped: list[UserError]) -> str:
    """Return how to go on with what is not packed as one of the known datasets."""
    if stopped:
        return stopped[0].remedy
    command = "face-mllm data inspect"
    if root.suffix.lower() in TABLES:
        return (
            f"read a table of your own with `{command} table {root} columns.image=COLUMN "
            "columns.expression=COLUMN` (docs/data.md lists the other keys)"
        )
    classes = [path.name for path in subfolders(root)] if root.is_dir() else []
    if any(find_expression(name) or canonical_split(name) for name in classes):
        return f"read a folder per class with `{command} folder {root}`"
    return (
        "name one with --source (`face-mllm data sources` lists them; folder and table "
        "read what is not packed as one of the known datasets)"
    )


def _read(
    reader: Source, root: Path, options: SourceOptions, protocol: Protocol, progress: Progress
) -> Reading:
    reading = Reading(protocol)
    try:
        for number, row in enumerate(reader.read_rows(root, options, protocol), start=1):
            reading.add(row)
            progress(number, 0, "reading")
    except UserError as error:
        reading.error = str(error)
    reading.pictures.look(progress)
    return reading


def _raise_if_hopeless(found: Inspection) -> None:
    """A reader that stops on a complete folder met bad input: that is an error, not a report."""
    missing = found.variant is not None and found.variant.missing
    errors = [reading.error for reading in found.readings]
    if all(errors) and not missing:
        raise UserError(errors[0])


# --- the report


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
