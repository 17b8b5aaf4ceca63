"""What img2dataset wrote: pictures with metadata, as WebDataset tars, parquet or plain files.

A shard is ``00000.tar``, a folder ``00000`` or a ``00000.parquet`` with the encoded pictures; the
parquet beside tars and folders holds metadata alone and is not read. Tars are read as they stream
by, parquet in batches, folders one at a time.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources.base import reading
from face_mllm.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
SHARD = re.compile(r"\d{4,}(\.tar|\.parquet)?")
BATCH = 256


@dataclass
class Sample:
    """One downloaded picture.

    Args:
        key: unique within all shards.
        image: encoded bytes, the path of a file, or None when its download failed.
        facts: metadata; names in lower case.
    """

    key: str
    image: bytes | str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def form(root: Path) -> str:
    """Return ``webdataset``, ``files`` or ``parquet``, or nothing when there are no shards."""
    return next((kind for _, kind in _outputs(root)), "")


def samples(root: Path) -> Iterator[Sample]:
    """Yield the samples of every shard in order; those of an output folder carry its name.

    Raises:
        UserError: an archive or parquet file that cannot be read.
    """
    for folder, kind in _outputs(root):
        prefix = "" if folder == root else f"{folder.name}_"
        for name in _shards(folder, kind):
            reader = {"webdataset": _tar, "files": _folder, "parquet": _parquet}[kind]
            for sample in reader(folder / name):
                sample.key = prefix + sample.key
                yield sample


def _outputs(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders that hold shards: the root, else the folders in it (one per run)."""
    if not root.is_dir():
        return
    kind = _kind(root)
    if kind:
        yield root, kind
        return
    with os.scandir(root) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir())
    found = ((root / name, _kind(root / name)) for name in inside)
    yield from ((folder, kind) for folder, kind in found if kind)


def _kind(folder: Path) -> str:
    for kind in ("webdataset", "files"):
        if _shards(folder, kind):
            return kind
    shards = _shards(folder, "parquet")
    return "parquet" if shards and _column(_schema(folder / shards[0])) else ""


def _shards(folder: Path, kind: str) -> list[str]:
    ending = {"webdataset": ".tar", "files": "", "parquet": ".parquet"}[kind]
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if SHARD.fullmatch(e.name) and _ends(e, ending)]
    return sorted(found)


def _ends(entry: os.DirEntry[str], ending: str) -> bool:
    return Path(entry.name).suffix == ending and entry.is_dir() == (ending == "")


def _tar(path: Path) -> Iterator[Sample]:
    sample = Sample("")
    try:
        with tarfile.open(path, "r|") as members:  # a stream: nothing is held but one sample
            for member in members:
                key, _, ending = member.name.rsplit("/", 1)[-1].partition(".")
                file = members.extractfile(member)
                if file is None:
                    continue
                if key != sample.key:
                    if sample.key:
                        yield sample
                    sample = Sample(key)
                _take(sample, ending.lower(), file.read(), path)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: not readable as tar ({error})", "download it again") from error
    if sample.key:
        yield sample


def _take(sample: Sample, ending: str, data: bytes, path: Path) -> None:
    if ending in PICTURES:
        sample.image = data
    elif ending == "txt":
        sample.facts.setdefault("caption", data.decode("utf-8", errors="replace"))
    elif ending == "json":
        sample.facts |= _facts(data, f"{path}: {sample.key}.json")


def _facts(data: bytes, where: str) -> dict[str, Any]:
    try:
        return {str(name).lower(): value for name, value in json.loads(data).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{where}: not readable as json ({error})", "download again") from error


def _folder(path: Path) -> Iterator[Sample]:
    files: dict[str, list[str]] = {}
    for name in sorted(os.listdir(path)):
        key, _, ending = name.partition(".")
        files.setdefault(key, []).append(ending)
    for key, endings in files.items():
        sample = Sample(key)
        for ending in endings:
            file = path / f"{key}.{ending}"
            if ending.lower() in PICTURES:
                sample.image = str(file.resolve())
            elif ending.lower() in ("txt", "json"):
                with reading(file):
                    data = file.read_bytes()
                _take(sample, ending.lower(), data, path)
        yield sample


def _parquet(path: Path) -> Iterator[Sample]:
    column = _column(_schema(path))
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH):
                for place, row in enumerate(batch.to_pylist()):
                    facts = {name.lower(): value for name, value in row.items() if name != column}
                    image = row[column] if column else None
                    key = str(facts.get("key") or f"{path.stem}_{place:08d}")
                    yield Sample(key, image, facts)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not readable as parquet ({error})", "download again") from error


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable as parquet ({error})", "download again") from error


def _column(schema: pa.Schema) -> str:
    """Return the column of encoded pictures, nothing when the file holds metadata alone."""
    return next((name for name in schema.names if name.lower() in PICTURES), "")
