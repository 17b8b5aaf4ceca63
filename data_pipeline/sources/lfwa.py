"""``lfwa``: LFWA+, 40 or 73 attributes of Labeled Faces in the Wild (Liu et al. 2015).

MATLAB files of version 7.3 or saved again as an older one; file names with backslashes and
attribute names with blanks at their end; indices count from 1. Labels are 1 and 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import Flags, absent, first, home, need, need_home
from data_pipeline.sources._mat import load_mat
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)
from face_mllm.errors import UserError

LISTS = {"40": "lfw_att_40.mat", "73": "lfw_att_73.mat"}
INDICES = "indices_train_test.mat"
PICTURES = ("lfw", "image_path")


class LfwaOptions(SourceOptions):
    """Options of ``lfwa``.

    Args:
        attributes: which of the two label files: the 40 of CelebA, or all 73.
    """

    attributes: Literal["40", "73"] = "40"


def detect(root: Path) -> Variant | None:
    """Recognise LFWA by its label files."""
    base = home(root, *LISTS.values())
    if base is None:
        return None
    kinds = [kind for kind, file in LISTS.items() if (base / file).exists()]
    return Variant(f"{' and '.join(kinds)} attributes", absent(base, (INDICES,), PICTURES))


def read_rows(root: Path, options: LfwaOptions, protocol: Protocol) -> Rows:
    """Yield a record per labelled picture.

    Raises:
        UserError: a missing file, another shape of labels, an index out of range, or no library
            that reads MATLAB files.
    """
    base, name = need_home(root, "LFWA", *LISTS.values()), options.name or "lfwa"
    path = need(base, LISTS[options.attributes])
    table = _table(path)
    splits = _splits(need(base, INDICES), len(table))
    folder = (first(base, *PICTURES) or base / PICTURES[0]).resolve()
    flags = Flags(list(table.columns), codes("lfwa", "attribute"))
    hold_out = protocol.settings.get("hold_out")
    for file, split, row in zip(table.index, splits, flags.rows(table, path), strict=True):
        person, _, picture = file.partition("/")
        if not split:
            yield Dropped("in neither list of indices", file)
            continue
        subject = f"{name}_{person}"
        yield FaceRecord(
            id=f"{name}_{Path(picture).stem}",
            source=name,
            split=hash_split(subject, hold_out) if hold_out and split == "train" else split,
            subject=subject,
            image=f"{folder}/{file}",
            labels=flags.labels(row),
            licence=options.licence,
        )


def _table(path: Path) -> pd.DataFrame:
    """Return the labels with attribute names as columns and picture paths as index."""
    found = load_mat(path, ("name", "AttrName", "label"))
    try:
        files = [str(file).strip().replace("\\", "/") for file in found["name"]]
        columns = [str(column).strip() for column in found["AttrName"]]
        labels = np.asarray(found["label"], float).reshape(len(files), len(columns))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not LFWA's name, AttrName and label ({error})", "download it again"
        ) from error
    return pd.DataFrame(labels, index=files, columns=columns)


def _splits(path: Path, count: int) -> list[str]:
    """Return the split of every row, nothing for those no list of indices names."""
    found: dict[str, Any] = load_mat(path, ("indices_img_train", "indices_img_test"))
    splits = np.full(count, "", dtype="U5")
    for split in ("train", "test"):
        try:
            places = np.atleast_1d(found[f"indices_img_{split}"]).astype(int).ravel() - 1
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: no indices_img_{split} ({error})", "download again"
            ) from error
        if len(places) and not (places.min() >= 0 and places.max() < count):
            raise UserError(
                f"{path}: indices_img_{split} runs from {places.min() + 1} to {places.max() + 1}, "
                f"but there are {count} pictures",
                "take both files from one release",
            )
        if (splits[places] != "").any():
            raise UserError(f"{path}: a picture is in both lists", "download it again")
        splits[places] = split
    return splits.tolist()


SOURCE = Source(
    name="lfwa",
    summary="LFWA+: 40 or 73 attributes from .mat files of any version",
    read_rows=read_rows,
    options=LfwaOptions,
    protocols=protocols("lfwa"),
    detect=detect,
    licence="non-commercial research",
)
