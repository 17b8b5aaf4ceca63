"""``celeba``: CelebA as the official txt lists or as the csv copies on Kaggle (Liu et al. 2015).

Layout after torchvision's ``celeba.py``: a count line, a header line, columns apart by runs of
spaces; -1 means absent, nothing is unknown. Boxes belong to the photographs before alignment
(``img_celeba``), so only ``pictures: original`` has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import (
    Flags,
    absent,
    csv_header,
    first,
    home,
    iter_csv,
    need,
    need_home,
    read_list,
)
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, reading
from face_mllm.errors import UserError

FOLDERS = ("", "Anno/", "Eval/")
INNER = ("Anno", "Eval", "Img")
PICTURES = {
    "aligned": (  # the deeper folder first: the Kaggle archive holds the name twice
        "img_align_celeba/img_align_celeba",
        "Img/img_align_celeba/img_align_celeba",
        "Img/img_align_celeba",
        "Img/img_align_celeba_png",
        "img_align_celeba_png",
        "img_align_celeba",
    ),
    "original": ("Img/img_celeba", "img_celeba"),
}
BOX = ("x_1", "y_1", "width", "height")


class CelebaOptions(SourceOptions):
    """Options of ``celeba``.

    Args:
        pictures: the aligned crops, or the original photographs with their face boxes.
    """

    pictures: Literal["aligned", "original"] = "aligned"


def _names(stem: str) -> tuple[str, ...]:
    return tuple(f"{folder}{stem}.{kind}" for kind in ("txt", "csv") for folder in FOLDERS)


ATTRIBUTES, PARTITION = _names("list_attr_celeba"), _names("list_eval_partition")
IDENTITY, BOXES = _names("identity_CelebA"), _names("list_bbox_celeba")


def detect(root: Path) -> Variant | None:
    """Recognise CelebA by its attribute list."""
    base = home(root, *ATTRIBUTES, inner=INNER)
    if base is None:
        return None
    official = need(base, *ATTRIBUTES).suffix == ".txt"
    name = "official lists (txt)" if official else "lists as csv (Kaggle)"
    missing = absent(base, PARTITION, IDENTITY, PICTURES["aligned"])
    notes = ("without identity_CelebA every picture is its own subject",)
    return Variant(name, missing, notes if IDENTITY[0] in missing else ())


def read_rows(root: Path, options: CelebaOptions, protocol: Protocol) -> Rows:
    """Yield a record per row of the attribute list.

    Raises:
        UserError: a list that is not there, or a cell that is neither -1 nor 1.
    """
    base, name = need_home(root, "CelebA", *ATTRIBUTES, inner=INNER), options.name or "celeba"
    path = need(base, *ATTRIBUTES)
    table = _read(path)
    split_of = _lookup(need(base, *PARTITION), ("partition",))["partition"].map(
        codes("celeba", "split")
    )
    person_path = first(base, *IDENTITY)
    person_of = _lookup(person_path, ("identity",))["identity"].to_dict() if person_path else {}
    boxes = _boxes(base) if options.pictures == "original" else None
    folders = PICTURES[options.pictures]
    folder = (first(base, *folders) or base / folders[-1]).resolve()
    flags = Flags(list(table.columns[1:]), codes("celeba", "attribute"))
    files = table.iloc[:, 0].tolist()
    splits = split_of.reindex(files).tolist()
    for file, split, row in zip(files, splits, flags.rows(table, path), strict=True):
        key = f"{name}_{file.rsplit('.', 1)[0]}"
        box = _box(boxes, file)
        if not isinstance(split, str):
            yield Dropped("no split in list_eval_partition", file)
        elif box is None:
            yield Dropped("no face box in list_bbox_celeba", file)
        else:
            yield FaceRecord(
                id=key,
                source=name,
                split=split,
                subject=f"{name}_{person_of[file]}" if file in person_of else key,
                image=f"{folder}/{_file(file, folder)}",
                labels=flags.labels(row),
                box=box,
                licence=options.licence,
            )


def _file(file: str, folder: Path) -> str:
    return file.replace(".jpg", ".png") if folder.name.endswith("_png") else file


def _read(path: Path) -> pd.DataFrame:
    """Return a list with header as a table of which the first column is the file name."""
    if path.suffix == ".csv":
        header = csv_header(path)
        return pd.concat(list(iter_csv(path, header, text=False)))
    with reading(path, ValueError), path.open(encoding="utf-8-sig") as file:
        count, header = file.readline().strip(), file.readline().split()
    if not count.isdigit():
        raise UserError(f"{path}: line 1 is not the number of rows", "download the file again")
    names = header if header[0] == "image_id" else ["image_id", *header]
    table = read_list(path, names, skip=2)
    if len(table) != int(count):
        raise UserError(
            f"{path}: {len(table)} rows where line 1 says {count}", "download the file again"
        )
    table.index += 1
    return table


def _lookup(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return a headerless txt list, or its csv copy, by file name."""
    if path.suffix == ".csv":
        table = pd.concat(list(iter_csv(path, ("image_id", *columns), text=False)))
    else:
        table = read_list(path, ("image_id", *columns))
    return table.set_index("image_id")


def _boxes(base: Path) -> dict[str, tuple[float, ...]]:
    path = need(base, *BOXES)
    table = _read(path)
    with reading(path, ValueError, KeyError):
        corners = table[list(BOX)].to_numpy(float)
    corners[:, 2:] += corners[:, :2]
    found = zip(table["image_id"], corners.tolist(), strict=True)
    return {file: tuple(box) for file, box in found if box[2] > box[0] and box[3] > box[1]}


def _box(boxes: dict[str, tuple[float, ...]] | None, file: str) -> tuple[float, ...] | None:
    return () if boxes is None else boxes.get(file)


SOURCE = Source(
    name="celeba",
    summary="CelebA: 40 attributes, official txt lists or the csv copies",
    read_rows=read_rows,
    options=CelebaOptions,
    protocols=protocols("celeba"),
    detect=detect,
    licence="non-commercial research",
    overlaps=("celeba_dialog",),
)
