"""``ckplus``: CK+, the peak frame of each sequence with its expression and action units.

``FACS/S005/001/*_facs.txt`` lists the active units as ``AU intensity``; intensity 0 means "present,
intensity not coded", which readers take both ways, so the protocol says which. 327 of the 593
sequences have ``Emotion/S005/001/*_emotion.txt``, one number. Source: Lucey et al. 2010.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.labels.action_units import action_units, parse_action_unit
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    RESEARCH,
    decode,
    face,
    find,
    listed,
    need,
    number,
    whole,
)
from data_pipeline.sources.base import Rows, Source, SourceOptions, Variant, hash_split, record_id
from data_pipeline.sources.folder import subfolders
from face_mllm.errors import UserError

FACS = ("FACS", "FACS_labels/FACS", "FACS_labels")
EMOTION = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels")
IMAGES = ("cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images")


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per sequence that has a label file: its last frame, the peak.

    Raises:
        UserError: no label folders, no image folder, or a malformed label file.
    """
    images = need(root, *IMAGES)
    facs, emotions = find(root, *FACS), find(root, *EMOTION)
    if facs is None and emotions is None:
        raise UserError(f"{root}: no {FACS[0]} and no {EMOTION[0]}", "unpack the label archives")
    units = dict(_files(facs, "_facs.txt"))
    words = dict(_files(emotions, "_emotion.txt"))
    for stem in sorted(units | words):
        person, sequence, _ = stem.split("_", 2)
        labels: dict[str, Any] = {}
        if stem in words:
            labels["expression"] = _expression(words[stem])
        if stem in units:
            labels["action_units"] = _units(units[stem], protocol)
        split = hash_split(record_id(options.name or "ckplus", person), protocol.settings["split"])
        image = images / person / sequence / f"{stem}.png"
        yield face("ckplus", options, stem, split, image, labels, person)


def _files(folder: Path | None, ending: str) -> Iterator[tuple[str, Path]]:
    for person in subfolders(folder) if folder else ():
        for sequence in subfolders(person):  # many of Emotion's are empty
            for path in sorted(sequence.glob(f"*{ending}")):
                stem = path.name.removesuffix(ending)
                if stem.count("_") != 2:
                    raise UserError(
                        f"{path}: unexpected name", f"expected S005_001_<frame>{ending}"
                    )
                yield stem, path


def _expression(path: Path) -> str:
    lines = [text for _, text in listed(path)]
    if len(lines) != 1:
        raise UserError(f"{path}: {len(lines)} lines instead of one", "restore it")
    return decode("ckplus", "expression", lines[0], str(path))


def _units(path: Path, protocol: Protocol) -> dict[str, float | bool]:
    """Return every unit of the protocol: true, an intensity, or false where it is not listed."""
    found: dict[str, float | bool] = {
        parse_action_unit(unit).label: False for unit in protocol.settings["action_units"]
    }
    for line, text in listed(path):
        where = f"{path}: line {line}"
        row = text.split()
        if len(row) != 2:
            raise UserError(f"{where}: {text!r}", "expected `AU intensity`")
        unit, intensity = whole(row[0], where), number(row[1], where)
        if not 0 <= intensity <= 5:
            raise UserError(
                f"{where}: intensity {intensity:g} is not within 0 to 5", "mend the line"
            )
        if unit not in action_units():
            continue  # FACS codes of head, eyes and gross behaviour (40, 50 and up)
        if intensity < protocol.settings["absent_below"]:
            found[f"AU{unit}"] = False
        else:
            found[f"AU{unit}"] = intensity or True
    return found


def detect(root: Path) -> Variant | None:
    """Recognise any of the three folders and say which of them are missing."""
    parts = {"cohn-kanade-images": IMAGES, "FACS": FACS, "Emotion": EMOTION}
    missing = tuple(name for name, marks in parts.items() if find(root, *marks) is None)
    if len(missing) > 1:
        return None
    return Variant("sequences with peak-frame labels", missing)


SOURCE = Source(
    name="ckplus",
    summary="CK+: peak frames with expression and FACS action units",
    read_rows=read_rows,
    protocols=protocols("ckplus"),
    detect=detect,
    licence=RESEARCH,
)
