"""``biwi``: the Biwi Kinect head poses, 24 sequences of 20 people, raw or as numpy packs.

Raw: ``01/frame_00003_rgb.png`` (jpg in some copies) beside ``frame_00003_pose.txt``, which holds a
rotation matrix, a blank line and the position of the head. The camera's axes are taken as x right,
y down, z away (inferred from the formulas in use, which agree with it in every sign). Pictures are
whole Kinect frames without a box.

Packs (``BIWI_noTrack.npz``; FSA-Net data/TYY_create_db_biwi.py): ``image`` N x H x W x 3 as OpenCV
reads it (blue first) and ``pose`` in degrees as yaw, pitch, roll, the opposite order of 300W-LP's
files. Both give the same angles. Packs do not say whom they show: each frame is its own subject.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._frames import find_base, read_lines, subfolders
from data_pipeline.sources._pose import head_pose, rotation_pose
from data_pipeline.sources.base import (
    Rows,
    Source,
    SourceOptions,
    Variant,
    canonical_split,
    hash_split,
)
from face_mllm.errors import UserError

POSE = "_pose.txt"
PACKS = ("BIWI_noTrack", "BIWI_train", "BIWI_test")
_SEQUENCES = 24
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class BiwiOptions(SourceOptions):
    """Options of ``biwi``.

    Args:
        channels: order of the colours in a pack; OpenCV's unless it was made otherwise.
    """

    channels: Literal["bgr", "rgb"] = "bgr"


def read_rows(root: Path, options: BiwiOptions, protocol: Protocol) -> Rows:
    """Yield one record per frame; the raw sequences where they are there, else the packs.

    Raises:
        UserError: nothing the protocol can be read from, or a malformed file.
    """
    base = _raw_base(root)
    packs = _packs(root, protocol)
    if base and "split" in protocol.settings:
        for sequence in _sequences(base):
            yield from _sequence_rows(sequence, options, protocol)
    elif packs:
        for path, split in packs:
            yield from _pack_rows(path, split, options)
    else:
        wanted = [f"{name}.npz" for name in protocol.settings["packs"]]
        wanted += ["01/frame_00003_pose.txt"] * ("split" in protocol.settings)
        raise UserError(
            f"{root}: nothing for {protocol.name}, which reads {' or '.join(wanted)}",
            f"choose another protocol ({', '.join(SOURCE.protocols)}) or folder",
        )


def _raw_base(root: Path) -> Path | None:
    base = find_base(root, "01")
    return base if base and any((base / "01").glob(f"*{POSE}")) else None


def _packs(root: Path, protocol: Protocol) -> list[tuple[Path, str]]:
    splits = protocol.settings["packs"]
    paths = [root] if root.is_file() else [root / f"{name}.npz" for name in splits]
    return [(path, splits[path.stem]) for path in paths if path.stem in splits and path.is_file()]


def _sequences(base: Path) -> list[Path]:
    return [path for path in subfolders(base) if path.name.isdecimal()]


def _sequence_rows(sequence: Path, options: BiwiOptions, protocol: Protocol) -> Rows:
    rule = protocol.settings["split"]
    subject = f"biwi_{protocol.settings['people'].get(sequence.name, sequence.name)}"
    name = options.name or "biwi"
    files = sorted(path.name for path in sequence.iterdir())
    jpegs = any(file.endswith("_rgb.jpg") for file in files)
    for file in files:
        if not file.endswith(POSE):
            continue
        frame = file.removesuffix(POSE)
        picture = sequence / f"{frame}_rgb.{'jpg' if jpegs else 'png'}"
        yield FaceRecord(
            id=f"{name}_{sequence.name}_{frame}",
            source=name,
            split=canonical_split(rule) or hash_split(subject, rule),
            subject=subject,
            image=str(picture),
            labels=rotation_pose(_rotation(sequence / file)),
            licence=options.licence,
        )


def _rotation(path: Path) -> np.ndarray:
    try:
        rows = [[float(cell) for cell in text.split()] for _, text in read_lines(path)]
        rotation = np.array(rows[:3])
        sound = rotation.shape == (3, 3) and abs(np.linalg.det(rotation) - 1) < 0.05
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{path}: does not begin with a rotation matrix", "unpack it again")
    return rotation


def _pack_rows(path: Path, split: str, options: BiwiOptions) -> Rows:
    name = options.name or "biwi"
    try:
        with np.load(path) as pack:
            poses = pack["pose"]
        for number, (pixels, pose) in enumerate(zip(_images(path), poses, strict=True)):
            key = f"{name}_{path.stem}_{number:05d}"
            yield FaceRecord(
                id=key,
                source=name,
                split=split,
                subject=key,
                image=_png(pixels if options.channels == "rgb" else pixels[..., ::-1]),
                labels=head_pose(*pose),
                licence=options.licence,
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: no pack of `image` and `pose` ({error})", "make or fetch it again"
        ) from error


def _images(path: Path) -> Iterator[np.ndarray]:
    """The pictures of a pack one by one: together they can be gigabytes."""
    with zipfile.ZipFile(path) as pack, pack.open("image.npy") as file:
        shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        if by_columns or len(shape) != 4:
            raise ValueError(f"image has shape {shape}")
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for _ in range(shape[0]):
            yield np.frombuffer(file.read(size), dtype).reshape(shape[1:]).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def detect(root: Path) -> Variant | None:
    """Recognise raw sequences or packs."""
    base = _raw_base(root)
    if base:
        count = len(_sequences(base))
        missing = (f"{count} of {_SEQUENCES} sequences",) if count < _SEQUENCES else ()
        return Variant("BIWI, raw sequences", missing, ("no face boxes: whole Kinect frames",))
    packs = [name for name in PACKS if root.stem == name or (root / f"{name}.npz").is_file()]
    return Variant(f"BIWI, numpy packs ({', '.join(packs)})") if packs else None


SOURCE: Source = Source(
    name="biwi",
    summary="BIWI: 01/frame_00003_rgb.png and _pose.txt, or BIWI_noTrack.npz packs",
    read_rows=read_rows,
    options=BiwiOptions,
    protocols=protocols("biwi"),
    detect=detect,
    licence="non-commercial research",
)
