"""Face records and built datasets on disk: the one shape every room of the house reads and writes.

A built dataset is a folder of ``train-*.parquet``, ``val-*.parquet``, ``test-*.parquet`` plus
``manifest.json`` and ``README.md``; one row is one face record.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from face_mllm.errors import UserError

SPLITS = ("train", "val", "test")
ROWS_PER_GROUP = 256  # a reader holds one row group of images in memory

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "split": datasets.Value("string"),
        "subject": datasets.Value("string"),
        "image": datasets.Image(),
        "box": datasets.List(datasets.Value("float32")),  # x0, y0, x1, y1 in pixels, or empty
        "labels": datasets.Value("string"),  # json; an absent key is unknown
        "qa": datasets.List(
            {
                "task": datasets.Value("string"),
                "name": datasets.Value("string"),
                "question": datasets.Value("string"),
                "answer": datasets.Value("string"),
                "choices": datasets.List(datasets.Value("string")),
                "weight": datasets.Value("float32"),
            }
        ),
        "caption": datasets.Value("string"),
        # json: how the image was cut from a photograph (policy, boxes, landmarks), or empty
        "crop": datasets.Value("string"),
        "licence": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class QA:
    """One question about one face.

    Args:
        task: expression, action_unit, attribute, age, head_pose, caption, vqa, or a later one.
        name: what is asked about inside the task (``AU12``, ``eyeglasses``, ``yaw``, ``all``).
        question: the words put to the model.
        answer: the words it should say.
        choices: the closed answer set, empty for open questions.
        weight: factor on this answer's loss.
    """

    task: str
    name: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class FaceRecord:
    """One face with what is known about it.

    Args:
        id: source plus a stable key from the distribution.
        image: encoded bytes, or a path to an image file.
        labels: canonical labels (see ``data_pipeline.labels``); an absent key is unknown.
        box: (x0, y0, x1, y1) of the face in pixels of the image, or empty.
        crop: how the image was cut from a photograph (see ``data_pipeline.faces``): ``policy``,
            and in pixels of the photograph ``box`` of the crop, ``face`` and ``landmarks``; empty
            where it was not.
    """

    id: str
    source: str
    split: str
    subject: str
    image: bytes | str
    labels: dict[str, Any]
    box: tuple[float, ...] = ()
    qa: tuple[QA, ...] = ()
    caption: str = ""
    licence: str = ""
    crop: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Return the parquet row of :data:`FEATURES`."""
        image = (
            {"bytes": self.image, "path": None}
            if isinstance(self.image, bytes)
            else {"bytes": None, "path": self.image}
        )
        return {
            "id": self.id,
            "source": self.source,
            "split": self.split,
            "subject": self.subject,
            "image": image,
            "box": list(self.box),
            "labels": json.dumps(self.labels, sort_keys=True),
            "qa": [{**qa.__dict__, "choices": list(qa.choices)} for qa in self.qa],
            "caption": self.caption,
            "crop": json.dumps(self.crop, sort_keys=True) if self.crop else "",
            "licence": self.licence,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> FaceRecord:
        """Rebuild a record from a row read with undecoded images."""
        image = row["image"]
        return cls(
            id=row["id"],
            source=row["source"],
            split=row["split"],
            subject=row["subject"],
            image=image["bytes"] if image["bytes"] is not None else image["path"],
            labels=json.loads(row["labels"]),
            box=tuple(row["box"] or ()),
            qa=tuple(QA(**{**qa, "choices": tuple(qa["choices"])}) for qa in row["qa"] or ()),
            caption=row["caption"] or "",
            licence=row["licence"] or "",
            crop=json.loads(row.get("crop") or "{}"),  # a column of later versions
        )

    def open_image(self) -> Image.Image:
        """Decode to an upright RGB image; a broken one is a :class:`UserError` with the id."""
        source: Any = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
        return open_rgb(source, self.id)


def open_rgb(source: Any, name: str) -> Image.Image:
    """Decode an image file or buffer to upright RGB; ``name`` is what the error shows."""
    try:
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such image file", "check the path") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name}: not a readable image ({error})", "remove or replace the file"
        ) from error


@dataclass
class DatasetWriter:
    """Writes records into shards of a folder that appears whole or not at all.

    Use through :func:`write_dataset`.
    """

    folder: Path
    rows_per_shard: int = 2000
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _pending: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    _shards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def add(self, record: FaceRecord) -> None:
        """Queue one record; full shards go to disk at once, so memory stays bounded."""
        if record.split not in SPLITS:
            raise UserError(f"{record.id}: split {record.split!r} is not one of {SPLITS}")
        self._pending[record.split].append(record.to_row())
        self.counts[record.split] += 1
        if len(self._pending[record.split]) >= self.rows_per_shard:
            self._flush(record.split)

    def finish(self) -> None:
        """Write what is still queued."""
        for split in SPLITS:
            if self._pending[split]:
                self._flush(split)

    def _flush(self, split: str) -> None:
        name = f"{split}-{self._shards[split]:05d}.parquet"
        table = pa.Table.from_pylist(self._pending[split], schema=FEATURES.arrow_schema)
        pq.write_table(table, self.folder / name, row_group_size=ROWS_PER_GROUP)
        self._shards[split] += 1
        self._pending[split] = []


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``out`` to fill; rename it on success, remove it on failure."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} already holds files", "choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def write_dataset(out: Path) -> Iterator[DatasetWriter]:
    """Yield a writer for the dataset folder ``out``; the folder appears only if all went well."""
    with whole_folder(out) as partial:
        writer = DatasetWriter(partial)
        yield writer
        writer.finish()


def load_split(root: Path | str, split: str) -> datasets.Dataset:
    """Memory-map one split of a built dataset, images undecoded.

    Raises:
        UserError: when the folder holds no shards of that split.
    """
    shards = shards_of(root, split)
    if not shards:
        raise UserError(
            f"{root}: no {split}-*.parquet",
            "build it with `face-mllm data build RECIPE.yaml --out DIR`",
        )
    table = datasets.Dataset.from_parquet([str(shard) for shard in shards], features=FEATURES)
    return table.cast_column("image", datasets.Image(decode=False))


def shards_of(root: Path | str, split: str) -> list[Path]:
    """Return the parquet shards of one split in order, none when it has no faces."""
    return sorted(Path(root).glob(f"{split}-*.parquet"))


def iter_rows(
    root: Path | str, split: str, columns: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Stream the rows of one split, or only some of their columns, a row group at a time.

    Raises:
        UserError: when a shard is no parquet file of this shape.
    """
    names = list(columns) if columns is not None else None
    for shard in shards_of(root, split):
        try:
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(ROWS_PER_GROUP, columns=names):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{shard}: unreadable ({error})", "build the data again") from error


def iter_records(root: Path | str, splits: Iterable[str] = SPLITS) -> Iterator[FaceRecord]:
    """Stream the records of the splits that exist, in file order."""
    for split in splits:
        for row in iter_rows(root, split):
            yield FaceRecord.from_row(row)


def read_manifest(root: Path | str) -> dict[str, Any]:
    """Read ``manifest.json`` of a built dataset."""
    path = Path(root) / "manifest.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found; {root} is not a built dataset",
            "build it with `face-mllm data build RECIPE.yaml --out DIR`",
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid json ({error})", "build the dataset again") from error
