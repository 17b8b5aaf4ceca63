"""``disfaplus``: posed expressions of nine people of DISFA, 12 action units graded 0-5.

``Labels/SN001/<trial>/AU1.txt`` holds ``000.jpg 3`` a line (``#`` comments), the pictures are in
``Images/SN001/<trial>/``. All nine people are in DISFA too: their subjects carry DISFA's name, so a
leak between the two shows. Layout: py-feat's loaders.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import (
    find_base,
    merge_units,
    need_base,
    subfolders,
    unit_files,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant

_PEOPLE = 9


class DisfaPlusOptions(SourceOptions):
    """Options of ``disfaplus``.

    Args:
        images: folder of the pictures, relative to the dataset (``Aligned`` for own crops).
    """

    images: str = "Images"


def read_rows(root: Path, options: DisfaPlusOptions, protocol: Protocol) -> Rows:
    """Yield one record per frame that is coded for every unit.

    Raises:
        UserError: no labels, or a missing or malformed label file.
    """
    base = need_base(root, "Labels")
    for person in subfolders(base / "Labels"):
        for trial in subfolders(person):
            yield from _trial_rows(trial, base / options.images, options, protocol)


def _trial_rows(labels: Path, images: Path, options: DisfaPlusOptions, protocol: Protocol) -> Rows:
    person, trial, units = labels.parent.name, labels.name, protocol.settings["units"]
    files = unit_files(labels, r"AU0*(\d+)\.txt", units)
    name = options.name or "disfaplus"
    for frame, grades in merge_units(files, separator=None):
        where = f"{person}/{trial}/{frame}"
        if len(grades) < len(units):
            yield Dropped("frame is not in the file of every unit", where)
            continue
        yield FaceRecord(
            id=f"{name}_{person}_{trial}_{Path(frame).stem}",
            source=name,
            split=protocol.settings["split"],
            subject=f"disfa_{person}",
            image=str(images / where),
            labels={"action_units": grades},
            licence=options.licence,
        )


def detect(root: Path) -> Variant | None:
    """Recognise ``Labels/SN.../<trial>/AU1.txt``."""
    base = find_base(root, "Labels")
    people = subfolders(base / "Labels") if base else []
    trials = [trial for person in people for trial in subfolders(person)]
    if base is None or not trials or not (trials[0] / "AU1.txt").is_file():
        return None
    missing = [f"Labels: {len(people)} of {_PEOPLE} people"] if len(people) < _PEOPLE else []
    if not (base / "Images").is_dir():
        missing.append("Images")
    return Variant("DISFA+ label files", tuple(missing), (f"{len(trials)} trials",))


SOURCE = Source(
    name="disfaplus",
    summary="DISFA+: Labels/SN001/<trial>/AU1.txt and Images/SN001/<trial>/000.jpg",
    read_rows=read_rows,
    options=DisfaPlusOptions,
    protocols=protocols("disfaplus"),
    detect=detect,
    licence="research only, agreement signed",
    overlaps=("disfa",),
)
