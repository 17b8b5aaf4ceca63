"""``aflw2000``: AFLW2000-3D, the first 2,000 faces of AFLW with a fitted pose.

One flat folder of ``image00002.jpg`` beside ``image00002.mat``, in 300W-LP's convention.
Layout: deep-head-pose, sixdrepnet.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import subfolders
from data_pipeline.sources._pose import read_pose_mat, within
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant
from face_mllm.errors import UserError

FILES = "image*.mat"
_PICTURES = 2000


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per picture with a pose within the protocol's limit.

    Raises:
        UserError: no label files, or one that cannot be read.
    """
    base = _base(root)
    if base is None:
        raise UserError(f"{root}: no {FILES}", "give the folder that holds image00002.mat")
    name, limit = options.name or "aflw2000", protocol.settings["limit"]
    for path in sorted(base.glob(FILES)):
        labels, box = read_pose_mat(path)
        if not within(labels, limit):
            yield Dropped(f"no pose within {limit} degrees", path.name)
            continue
        yield FaceRecord(
            id=f"{name}_{path.stem}",
            source=name,
            split=protocol.settings["split"],
            subject=f"{name}_{path.stem}",
            image=str(path.with_suffix(".jpg")),
            labels=labels,
            box=box,
            licence=options.licence,
        )


def _base(root: Path) -> Path | None:
    root = root.resolve()
    return next((path for path in (root, *subfolders(root)) if any(path.glob(FILES))), None)


def detect(root: Path) -> Variant | None:
    """Recognise the label files and count them."""
    base = _base(root)
    if base is None:
        return None
    count = sum(1 for _ in base.glob(FILES))
    missing = (f"{count} of {_PICTURES} label files",) if count < _PICTURES else ()
    return Variant("AFLW2000-3D", missing)


SOURCE = Source(
    name="aflw2000",
    summary="AFLW2000-3D: one folder of image00002.jpg and image00002.mat",
    read_rows=read_rows,
    protocols=protocols("aflw2000"),
    detect=detect,
    licence="non-commercial research",
)
