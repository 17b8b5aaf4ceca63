"""``300wlp``: 61,225 faces in large poses, synthesised from 300W photographs, and their mirrors.

``AFW/AFW_134212_1_0.jpg`` beside ``.mat``, mirrored copies under the same name in ``AFW_Flip``;
likewise HELEN, IBUG, LFPW. ``Code`` and ``landmarks`` are not read. The last number of a name
counts the views made of one photographed face: all views and mirror images of a face are one
subject, so none can cross splits. Layout: deep-head-pose, sixdrepnet; names of views inferred.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import find_base
from data_pipeline.sources._pose import read_pose_mat, within
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    canonical_split,
    hash_split,
    record_id,
)
from face_mllm.errors import UserError

SETS = ("AFW", "HELEN", "IBUG", "LFPW")
MIRRORED = "_Flip"
_VIEW = re.compile(r"_\d+$")


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per picture with a pose within the protocol's limit.

    Raises:
        UserError: none of the folders, or a label file that cannot be read.
    """
    base = _base(root)
    if base is None:
        raise UserError(f"{root}: none of the folders {', '.join(SETS)}", "give the one with them")
    for folder in [f"{name}{ending}" for name in SETS for ending in ("", MIRRORED)]:
        for path in sorted((base / folder).glob("*.mat")):
            if folder.endswith(MIRRORED) and not protocol.settings["mirrored"]:
                yield Dropped("mirrored copy", f"{folder}/{path.name}")
            else:
                yield _row(path, options, protocol)


def _base(root: Path) -> Path | None:
    return next((base for name in SETS if (base := find_base(root, name))), None)


def _row(path: Path, options: SourceOptions, protocol: Protocol) -> FaceRecord | Dropped:
    folder, limit, rule = path.parent.name, protocol.settings["limit"], protocol.settings["split"]
    labels, box = read_pose_mat(path)
    if not within(labels, limit):
        return Dropped(f"no pose within {limit} degrees", f"{folder}/{path.name}")
    face = _VIEW.sub("", path.stem.removesuffix(MIRRORED))
    subject = f"300wlp_{record_id(folder.removesuffix(MIRRORED), face)}"
    name = options.name or "300wlp"
    return FaceRecord(
        id=f"{name}_{folder}_{path.stem}",
        source=name,
        split=canonical_split(rule) or hash_split(subject, rule),
        subject=subject,
        image=str(path.with_suffix(".jpg")),
        labels=labels,
        box=box,
        licence=options.licence,
    )


def detect(root: Path) -> Variant | None:
    """Recognise the folders by a label file in one of them."""
    base = _base(root)
    if base is None or not any(next((base / name).glob("*.mat"), None) for name in SETS):
        return None
    wanted = [f"{name}{ending}" for name in SETS for ending in ("", MIRRORED)]
    return Variant("300W-LP", tuple(name for name in wanted if not (base / name).is_dir()))


SOURCE = Source(
    name="300wlp",
    summary="300W-LP: AFW, HELEN, IBUG, LFPW and their _Flip folders of .jpg and .mat",
    read_rows=read_rows,
    protocols=protocols("300wlp"),
    detect=detect,
    licence="non-commercial research, no commercial training",
)
