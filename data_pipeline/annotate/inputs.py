"""The faces to annotate: a built dataset, a recipe, or a plain folder of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline.records import (
    SPLITS,
    FaceRecord,
    iter_records,
    iter_rows,
    read_manifest,
    shards_of,
)
from data_pipeline.sources.base import (
    IMAGE_SUFFIXES,
    LITTER,
    fingerprint,
    hash_split,
    record_id,
)
from data_pipeline.tables import Progress
from face_mllm.errors import UserError


@dataclass(frozen=True)
class Faces:
    """Faces in an order that never changes.

    Args:
        root: dataset folder, or folder of pictures.
        pictures: True when ``root`` holds plain pictures.
        about: what the manifest says of the input.
        limit: only the first so many.
    """

    root: Path
    pictures: bool
    about: dict[str, Any]
    limit: int | None = None

    def __iter__(self) -> Iterator[FaceRecord]:
        faces = _photographs(self.root) if self.pictures else iter_records(self.root)
        return islice(faces, self.limit)

    def ids(self) -> Iterator[str]:
        """Yield the ids alone, in the same order."""
        if self.pictures:
            return (record.id for record in self)
        rows = (row["id"] for split in SPLITS for row in iter_rows(self.root, split, ["id"]))
        return islice(rows, self.limit)


def open_faces(
    data: str | Path, work: Path, limit: int | None, progress: Progress | None = None
) -> Faces:
    """Return the faces in a built dataset, a folder of pictures, or what a recipe names.

    Args:
        data: folder, recipe file, or name of a shipped recipe.
        work: where a recipe is built, once.
        limit: only the first so many.
        progress: told how far a recipe's build is.

    Raises:
        UserError: nothing to annotate there, or a recipe that does not build.
    """
    root = Path(data)
    if not root.is_dir():
        return _from_recipe(data, work / "input", limit, progress)
    built = any(shards_of(root, split) for split in SPLITS)
    if not built and next(_photographs(root), None) is None:
        raise UserError(
            f"{root}: neither a built dataset nor a folder with pictures",
            "give such a folder, or a recipe",
        )
    about: dict[str, Any] = {"root": str(root), "fingerprint": fingerprint(root)}
    if (root / "manifest.json").is_file():
        about["sources"] = read_manifest(root).get("sources", [])
    return Faces(root, not built, about, limit)


def _from_recipe(
    recipe: str | Path, out: Path, limit: int | None, progress: Progress | None
) -> Faces:
    """Build the recipe beside the journal, so that every reader and every check applies."""
    from data_pipeline.build import build

    if not out.is_dir():  # whole or not there
        build(recipe, out, progress=progress)
    text = Path(recipe).read_bytes() if Path(recipe).is_file() else str(recipe).encode()
    manifest = read_manifest(out)
    about = {
        "root": str(recipe),
        "fingerprint": hashlib.sha256(text).hexdigest()[:16],
        "sources": manifest.get("sources", []),
    }
    return Faces(out, False, about, limit)


def _photographs(root: Path) -> Iterator[FaceRecord]:
    """Yield a record per picture below ``root``; each counts as a person of its own."""
    name = root.resolve().name
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or LITTER & set(path.parts):
            continue
        key = record_id(name, path.relative_to(root).as_posix().replace("/", "_"))
        yield FaceRecord(key, name, hash_split(key), key, str(path.resolve()), {})
