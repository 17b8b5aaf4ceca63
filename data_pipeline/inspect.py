"""``data inspect``: what a downloaded folder holds, read through its own reader.

Names the distribution, reads every row once with bounded memory and sets the faces beside the
published counts. Pictures are looked for on the disk and never opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_pipeline.inspected import Inspection, Reading
from data_pipeline.labels.expressions import find_expression
from data_pipeline.protocols import Protocol
from data_pipeline.sources import Source, SourceOptions, Variant, get_source, sources
from data_pipeline.sources.base import canonical_split
from data_pipeline.sources.folder import subfolders
from data_pipeline.tables import Progress
from face_mllm.configio import apply_overrides, validate_model
from face_mllm.errors import UserError

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
TABLES = (".csv", ".tsv", ".txt", ".parquet")


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
        except OSError as error:
            said = f"{source.name}: {error.filename}: {error.strerror}"
            stopped.append(UserError(said, "unpack it again or give the dataset's own folder"))
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
    if root.suffix.lower() in ARCHIVES:
        return "unpack it and give the folder"
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
