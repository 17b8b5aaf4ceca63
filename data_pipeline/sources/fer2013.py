"""``fer2013``: 48x48 grey faces as numbers in a csv; also Kaggle's later files and folder mirror.

``fer2013.csv`` has ``emotion,pixels,Usage``; ``icml_face_data.csv`` the same columns in another
order with blanks before their names; ``train.csv`` holds the Training rows alone, ``test.csv`` no
labels. Source: Goodfellow et al. 2013 and the competition's files.
"""

from __future__ import annotations

import io
import os
import re
from itertools import islice
from pathlib import Path

from PIL import Image

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    UNSETTLED,
    absent,
    cells,
    class_rows,
    decode,
    face,
    find,
    need,
    table,
)
from data_pipeline.sources.base import Rows, Source, SourceOptions, Variant
from face_mllm.errors import UserError

WHOLE = ("fer2013.csv", "icml_face_data.csv")
TABLES = (*WHOLE, "train.csv")
VOTES = "fer2013new.csv"  # of FER+; beside fer2013.csv it makes the folder that dataset's
MIRROR = ("train/angry", "train/Angry")
MIRRORED = re.compile(r"(?:Training|PublicTest|PrivateTest)_\d+|im\d+")
SIDE = 48


def png(pixels: str, where: str) -> bytes:
    """Return 2,304 grey values, row by row, as an encoded picture.

    Raises:
        UserError: another number of values, or one that is no grey value.
    """
    try:
        image = Image.frombytes("L", (SIDE, SIDE), bytes(map(int, pixels.split())))
    except ValueError as error:
        raise UserError(f"{where}: not {SIDE * SIDE} grey values ({error})", "mend it") from error
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per row of the csv, or per picture of the folder mirror.

    Raises:
        UserError: neither is there, or a row nobody can read.
    """
    mirror = find(root, *MIRROR)
    if find(root, *TABLES) is None and mirror is not None:
        home = mirror.parent.parent
        folders = ((split, home / split) for split in ("train", "test") if (home / split).is_dir())
        yield from class_rows("fer2013", options, folders, codes("fer2013", "folder"))
        return
    path = need(root, *TABLES)
    splits = protocol.settings["splits"]
    for row, found in table(path, "emotion", "pixels"):
        where = f"{path}: row {row}"
        usage = found.get("Usage", "Training")  # train.csv has no such column
        if usage not in splits:
            raise UserError(f"{where}: Usage {usage!r}", f"expected {', '.join(splits)}")
        labels = {"expression": decode("fer2013", "expression", found["emotion"], where)}
        image = png(found["pixels"], where)
        yield face("fer2013", options, f"{row - 1:05d}", splits[usage], image, labels)


def detect(root: Path) -> Variant | None:
    """Tell the whole csv from Kaggle's parts and from the folder mirror."""
    path = find(root, *TABLES)
    if find(root, VOTES) is not None:
        return None
    if path is not None:
        head = next(cells(path), (0, []))[1]
        if not {"emotion", "pixels"} <= set(head):
            return None
        if path.name in WHOLE:
            return Variant(f"{path.name}, three Usages")
        notes = ("Training rows only", "test.csv has no labels and is not read")
        return Variant("Kaggle train.csv", WHOLE[:1], notes)
    mirror = find(root, *MIRROR)
    if mirror is not None and _mirrored(mirror):
        notes = ("test holds PublicTest and PrivateTest together", "no validation split")
        return Variant("folder mirror", absent(mirror.parent.parent, "test"), notes)
    return None


def _mirrored(folder: Path) -> bool:
    """Whether pictures are named as in the known mirrors, not as in a tree of one's own."""
    with os.scandir(folder) as entries:
        stems = (Path(entry.name).stem for entry in islice(entries, 50))
        named = any(MIRRORED.fullmatch(stem) for stem in stems)
    return named and not (folder.parent.parent / "valid").is_dir()  # MMAFEDB holds FER2013


SOURCE = Source(
    name="fer2013",
    summary="FER2013: 48x48 grey faces from fer2013.csv (or Kaggle's variants)",
    read_rows=read_rows,
    protocols=protocols("fer2013"),
    detect=detect,
    licence=UNSETTLED,
    overlaps=("ferplus", "mmafedb"),
)
