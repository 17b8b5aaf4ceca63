"""``records`` and ``synth``: a folder already in the shape of a built dataset.

``synth`` is what ``face-mllm data synth`` writes: exact labels, identities disjoint between
splits. ``records`` takes any built dataset; its questions are rendered anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import SPLITS, iter_records, read_manifest, shards_of
from data_pipeline.sources.base import Rows, Source, SourceOptions
from face_mllm.errors import UserError


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield the faces of a records folder with their own ids, splits and subjects.

    Raises:
        UserError: when the folder holds no shards.
    """
    if not any(shards_of(root, split) for split in SPLITS):
        raise UserError(
            f"{root}: holds no {'/'.join(SPLITS)} parquet shards",
            f"make some with `face-mllm data synth --out {root} -n 2000`",
        )
    for record in iter_records(root):
        source = options.name or record.source
        licence = options.licence or record.licence
        yield replace(record, qa=(), source=source, licence=licence)


def as_built(root: Path, options: SourceOptions) -> Mapping[str, Protocol]:
    """Return the protocols of a dataset this package built: they decide its targets again."""
    manifest = read_manifest(root) if (root / "manifest.json").is_file() else {}
    entries = manifest.get("sources", ())
    found = {
        name: Protocol(name=settings["name"], settings=settings)
        for entry in entries
        for name, settings in entry.get("protocols", {}).items()
    }
    if options.name and len(found) == 1:
        return {options.name: next(iter(found.values()))}
    return found


SOURCE = Source(
    name="records",
    summary="a dataset folder built by this package; questions are rendered anew",
    read_rows=read_rows,
    protocols=protocols("records"),
    as_built=as_built,
)
