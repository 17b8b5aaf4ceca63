"""``folder``: one folder per class, as ``root/split/class/*.jpg`` or ``root/class/*.jpg``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data_pipeline.labels.expressions import canonical_expression
from data_pipeline.labels.validate import GENDERS
from data_pipeline.protocols import Protocol
from data_pipeline.records import FaceRecord
from data_pipeline.sources.base import (
    HASH_SPLIT,
    IMAGE_SUFFIXES,
    LITTER,
    Dropped,
    Rows,
    Source,
    SourceOptions,
    canonical_split,
    check_split_rule,
    hash_split,
    record_id,
)
from face_mllm.errors import UserError


class FolderOptions(SourceOptions):
    """Options of ``folder``.

    Args:
        label: which label the class folders are.
        values: folder name -> canonical word, or null to leave the class out.
        split: rule when the tree has no split folders; every picture counts as its own subject.
    """

    label: Literal["expression", "gender"] = "expression"
    values: dict[str, str | None] = Field(default_factory=dict)
    split: Annotated[str, AfterValidator(check_split_rule)] = HASH_SPLIT


def read_rows(root: Path, options: FolderOptions, protocol: Protocol) -> Rows:
    """Yield one record per picture, classes by folder name.

    Raises:
        UserError: not a folder, no class folders, or a class name nobody knows.
    """
    name = options.name or root.name
    for split, folder in _class_folders(root):
        word = _class_word(folder, options)
        for path in sorted(folder.rglob("*")):
            where = path.relative_to(root).as_posix()
            if path.is_dir() or LITTER & set(path.parts):
                continue
            if word is None:
                yield Dropped(f"class {folder.name!r} left out by values", where)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                yield Dropped("not an image file", where)
            else:
                key = record_id(name, where.rsplit(".", 1)[0].replace("/", "_"))
                yield FaceRecord(
                    id=key,
                    source=name,
                    split=split or hash_split(key, options.split),
                    subject=key,
                    image=str(path.resolve()),
                    labels={options.label: word},
                    licence=options.licence,
                )


def subfolders(root: Path) -> list[Path]:
    """Return the folders in ``root`` in order of name, without what systems leave behind."""
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name not in LITTER)


def _class_folders(root: Path) -> Iterator[tuple[str | None, Path]]:
    if not root.is_dir() or not (top := subfolders(root)):
        raise UserError(
            f"{root}: no class folders", "expected root/split/class/*.jpg or root/class/*.jpg"
        )
    splits = [canonical_split(path.name) for path in top]
    for path, split in zip(top, splits, strict=True):
        if all(splits):
            yield from ((split, folder) for folder in subfolders(path))
        elif split:
            raise UserError(
                f"{root}: {path.name!r} looks like a split beside class folders",
                "use either split folders or class folders on the first level",
            )
        else:
            yield None, path


def _class_word(folder: Path, options: FolderOptions) -> str | None:
    word = options.values.get(folder.name, folder.name)
    if word is None:
        return None
    if options.label == "expression":
        try:
            return canonical_expression(word)
        except UserError as error:
            raise UserError(f"{folder}: {error.message}", error.remedy) from error
    if word.lower() not in GENDERS:
        near = difflib.get_close_matches(word.lower(), GENDERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{folder}: unknown gender {word!r}", f"{hint}map it with `values:`")
    return word.lower()


SOURCE = Source(
    name="folder",
    summary="one folder per class: root/split/class/*.jpg or root/class/*.jpg",
    read_rows=read_rows,
    options=FolderOptions,
    default_protocol=lambda options: f"folder/split-folders-or-{options.split}",
)
