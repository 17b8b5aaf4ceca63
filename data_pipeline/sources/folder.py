"""``folder``: one folder per class, as ``root/split/class/*.jpg`` or ``root/class/*.jpg``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from data_pipeline.labels.attributes import attributes, canonical_attribute, snake_case
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS, SPELLINGS
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
from data_pipeline.sources.cells import FLAG_WORDS, CellReader
from face_mllm.errors import UserError

LABELS = ("expression", "compound_expression", "gender", "age", "age_band")


class FolderOptions(SourceOptions):
    """Options of ``folder``.

    Args:
        label: which label the class folders are: one of these, or the name of an attribute whose
            folders are called true/false, yes/no or 1/0, or as ``values`` says.
        values: folder name -> canonical value, or null to leave the class out.
        split: rule when the tree has no split folders; every picture counts as its own subject.
    """

    label: str = "expression"
    values: dict[str, Any] = Field(default_factory=dict)
    split: Annotated[str, AfterValidator(check_split_rule)] = HASH_SPLIT

    @field_validator("label")
    @classmethod
    def _known(cls, label: str) -> str:
        if label in LABELS or canonical_attribute(label)[0] in attributes():
            return label
        near = difflib.get_close_matches(snake_case(label), [*LABELS, *attributes()], n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"write {', '.join(LABELS)} or an attribute"
        )
        raise ValueError(f"no label {label!r}: {hint}")


def read_rows(root: Path, options: FolderOptions, protocol: Protocol) -> Rows:
    """Yield one record per picture, classes by folder name.

    Raises:
        UserError: not a folder, no class folders, or a class name nobody knows.
    """
    name = options.name or root.name
    for split, folder in _class_folders(root):
        labels = _class_labels(folder, options)
        for path in sorted(folder.rglob("*")):
            where = path.relative_to(root).as_posix()
            if path.is_dir() or LITTER & set(path.parts):
                continue
            if labels is None:
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
                    labels=labels,
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


def _class_labels(folder: Path, options: FolderOptions) -> dict[str, Any] | None:
    """Return the labels of the pictures in a class folder, None when the class is left out."""
    word = options.values.get(folder.name, folder.name)
    if word is None:
        return None
    cells = CellReader(str(folder), {})
    try:
        if options.label in LABELS:
            return {options.label: cells.label(word, options.label, "", 0)}
        name, negated = canonical_attribute(options.label)
        return {"attributes": {name: cells.flag(word, options.label, "", 0) is not negated}}
    except UserError as error:
        near = difflib.get_close_matches(str(word).lower(), _words(options.label), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"{folder}: {word!r} is no {options.label}",
            f"{hint}map it: `values: {{{folder.name}: ...}}`, null to leave it out",
        ) from error


def _words(label: str) -> list[str]:
    """Return what the folders of a label may be called, nothing where those are numbers."""
    if label in ("age", "age_band"):
        return []
    words = {"expression": SPELLINGS, "compound_expression": COMPOUND_EXPRESSIONS}
    return list({**words, "gender": GENDERS}.get(label, FLAG_WORDS))


SOURCE = Source(
    name="folder",
    summary="one folder per class: root/split/class/*.jpg or root/class/*.jpg",
    read_rows=read_rows,
    options=FolderOptions,
    default_protocol=lambda options: f"folder/split-folders-or-{options.split}",
)
