"""``mmafedb``: MMAFEDB of Kaggle, class folders; it contains FER2013, so it is no clean test set.

Source: Kaggle ``mahmoudima/mma-facial-expression``.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    UNSETTLED,
    absent,
    class_names,
    class_rows,
    find,
    need,
)
from data_pipeline.sources.base import Rows, Source, SourceOptions, Variant

MARKS = tuple(
    f"{top}{name}/angry" for top in ("", "MMAFEDB/") for name in ("valid", "train", "test")
)
SETS = ("train", "valid", "test")
NOTES = (
    "contains FER2013 (and so the pictures of FER+): keep it away from their test sets",
    "known by its folder names alone: read a tree of your own named so with `--source folder`",
)


def read_rows(root: Path, options: SourceOptions, protocol: Protocol) -> Rows:
    """Yield one record per picture.

    Raises:
        UserError: no class folders, or a folder that is no class.
    """
    home = need(root, *MARKS).parent.parent
    splits = protocol.settings["splits"].items()
    folders = [(split, home / name) for name, split in splits if (home / name).is_dir()]
    yield from class_rows("mmafedb", options, folders, codes("mmafedb", "expression"))


def detect(root: Path) -> Variant | None:
    """Recognise ``valid`` and the seven words in every set; FER2013's mirror has no ``valid``."""
    found = find(root, *MARKS)
    if found is None:
        return None
    home, words = found.parent.parent, set(codes("mmafedb", "expression"))
    there = [name for name in SETS if (home / name).is_dir()]
    if "valid" not in there or any(class_names(home / name) != words for name in there):
        return None
    return Variant("class folders", absent(home, *SETS), NOTES)


SOURCE = Source(
    name="mmafedb",
    summary="MMAFEDB (Kaggle): class folders; contains FER2013",
    read_rows=read_rows,
    protocols=protocols("mmafedb"),
    detect=detect,
    licence=UNSETTLED,
    overlaps=("fer2013", "ferplus"),
)
