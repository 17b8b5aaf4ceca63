"""``rafau``: 4,601 web faces with FACS codes, some of them one-sided.

``RAFAU_label.txt`` has lines such as ``0001.jpg 1+2+L12+R12`` with stray blanks at the end;
``0002.jpg null`` means that nothing was coded (their emotions are ordinary ones), so nothing is
known. ``L12`` and ``R12`` fold into AU12 by name; a unit listed for one side alone also gets
``action_unit_sides``. Units outside the registry (head and eye codes) are not read. Pictures:
``aligned/0001_aligned.jpg``; the folder of uncropped ones is inferred.
Layout: OpenGraphAU tool/dataset_process.py, whose own folding by position turns L12 into AU11.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from data_pipeline.labels.action_units import SIDES, action_units, parse_sided_unit
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import AGAIN, find_base, need_base, read_lines
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, hash_split
from face_mllm.errors import UserError

LIST = "RAFAU_label.txt"
_TOKEN = re.compile(r"([A-Z]{0,2})(\d{1,2})")  # T and B are FACS's top and bottom


class RafAuOptions(SourceOptions):
    """Options of ``rafau``.

    Args:
        images: the aligned crops, or the uncropped pictures in ``original/0001.jpg``.
    """

    images: Literal["aligned", "original"] = "aligned"


def read_rows(root: Path, options: RafAuOptions, protocol: Protocol) -> Rows:
    """Yield one record per coded picture.

    Raises:
        UserError: no list, or a line that is no picture and codes.
    """
    base = need_base(root, LIST)
    name = options.name or "rafau"
    ending = "_aligned" if options.images == "aligned" else ""
    for number, text in read_lines(base / LIST):
        picture, _, codes = text.partition(" ")
        stem, _, suffix = picture.rpartition(".")
        if not stem or not codes:
            raise UserError(
                f"{base / LIST}: line {number}: {text!r} is no picture with codes", AGAIN
            )
        if codes.strip() == "null":
            yield Dropped("no action unit was coded (null)", picture)
            continue
        key = f"{name}_{stem.zfill(4)}"
        yield FaceRecord(
            id=key,
            source=name,
            split=hash_split(key, protocol.settings["split"]),
            subject=key,
            image=str(base / options.images / f"{stem.zfill(4)}{ending}.{suffix}"),
            labels=_labels(codes, protocol, f"{base / LIST}: line {number}"),
            licence=options.licence,
        )


def _labels(codes: str, protocol: Protocol, where: str) -> dict[str, Any]:
    units = {f"AU{number}": False for number in protocol.settings["absent_unless_listed"]}
    sides: dict[str, set[str | None]] = {}
    for token in codes.strip().split("+"):
        match = _TOKEN.fullmatch(token.strip())
        if match is None:
            raise UserError(f"{where}: {token!r} is no action unit", AGAIN)
        if int(match.group(2)) not in action_units():
            continue
        text = match.group(0) if match.group(1) in SIDES else match.group(2)
        unit, side = parse_sided_unit(text)
        units[unit.label] = True
        sides.setdefault(unit.label, set()).add(side)
    one_sided = {
        label: side
        for label, seen in sides.items()
        if len(seen) == 1 and (side := next(iter(seen))) is not None
    }
    return {"action_units": units} | ({"action_unit_sides": one_sided} if one_sided else {})


def detect(root: Path) -> Variant | None:
    """Recognise the list file."""
    base = find_base(root, LIST)
    if base is None or not (base / LIST).is_file():
        return None
    return Variant("RAF-AU", () if (base / "aligned").is_dir() else ("aligned",))


SOURCE = Source(
    name="rafau",
    summary="RAF-AU: RAFAU_label.txt (0001.jpg 1+2+L12+R12) and aligned/0001_aligned.jpg",
    read_rows=read_rows,
    options=RafAuOptions,
    protocols=protocols("rafau"),
    detect=detect,
    licence="research only, agreement signed",
)
