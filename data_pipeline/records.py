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
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, islice, starmap
from operator import attrgetter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from face_mllm.errors import UserError, brief
from face_mllm.outputs import check_out

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


REQUIRED = frozenset(FEATURES) - {"crop"}  # a column of later versions


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


_QA_FIELDS = tuple(QA.__dataclass_fields__)
_QA_VALUES = attrgetter(*_QA_FIELDS)


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
        foreign = isinstance(error, UnidentifiedImageError)  # its text names a place in memory
        why = "of no known format" if foreign else brief(error)
        raise UserError(
            f"{name}: not a readable image ({why})", "remove or replace the file"
        ) from error


def _plain_columns(records: Sequence[FaceRecord]) -> dict[str, pa.Array]:
    """Return the columns of :data:`FEATURES` but ``qa``, built whole instead of row by row."""
    types = {field.name: field.type for field in FEATURES.arrow_schema}
    images = [record.image for record in records]
    bytes_ = pa.array([i if isinstance(i, bytes) else None for i in images], pa.binary())
    paths = pa.array([None if isinstance(i, bytes) else i for i in images], pa.string())
    values: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in records]
        for name in ("id", "source", "split", "subject", "caption", "licence")
    }
    values["box"] = [list(record.box) for record in records]
    values["labels"] = [json.dumps(record.labels, sort_keys=True) for record in records]
    values["crop"] = [_json_or_nothing(record.crop) for record in records]
    columns = {name: pa.array(column, types[name]) for name, column in values.items()}
    columns["image"] = pa.StructArray.from_arrays([bytes_, paths], fields=list(types["image"]))
    return columns


def _json_or_nothing(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def qa_column(rows: Sequence[Sequence[QA]]) -> pa.ListArray:
    """Return the ``qa`` column of the questions of each record."""
    kind = FEATURES.arrow_schema.field("qa").type
    flat = [qa for qas in rows for qa in qas]
    values = list(zip(*map(_QA_VALUES, flat), strict=True)) or [()] * len(_QA_FIELDS)
    columns = dict(zip(_QA_FIELDS, values, strict=True))
    choices = [choice for offered in columns["choices"] for choice in offered]
    arrays = [
        list_column(_offsets(columns["choices"]), pa.array(choices, pa.string()), field.type)
        if field.name == "choices"
        else pa.array(columns[field.name], field.type)
        for field in kind.value_type
    ]
    struct = pa.StructArray.from_arrays(arrays, fields=list(kind.value_type))
    return list_column(_offsets(rows), struct, kind)


def qa_rows(column: pa.ListArray) -> Iterator[tuple[QA, ...]]:
    """Yield the questions of each row of a ``qa`` column."""
    flat = column.flatten()
    columns = {name: flat.field(name).to_pylist() for name in _QA_FIELDS}
    columns["choices"] = list(map(tuple, columns["choices"]))
    questions = starmap(QA, zip(*columns.values(), strict=True))
    for count in column.value_lengths().to_pylist():
        yield tuple(islice(questions, count))


def list_column(ends: Sequence[int] | np.ndarray, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column of lists: list i holds the values from ``ends[i]`` to ``ends[i + 1]``."""
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, type=kind)


def _offsets(lists: Sequence[Sequence[Any]]) -> list[int]:
    return list(accumulate(map(len, lists), initial=0))


def batch_of(records: Sequence[FaceRecord]) -> pa.RecordBatch:
    """Return records as rows of :data:`FEATURES`."""
    columns = _plain_columns(records) | {"qa": qa_column([record.qa for record in records])}
    schema = FEATURES.arrow_schema
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


@dataclass
class DatasetWriter:
    """Writes records into shards of a folder that appears whole or not at all.

    Use through :func:`write_dataset`.
    """

    folder: Path
    rows_per_shard: int = 2000
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _pending: dict[str, list[FaceRecord]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    _open: dict[str, pq.ParquetWriter] = field(default_factory=dict)

    def add(self, record: FaceRecord) -> None:
        """Queue one record; full row groups go to disk at once, so memory stays bounded."""
        if record.split not in SPLITS:
            raise UserError(
                f"{record.id}: split {record.split!r} is not one of {SPLITS}", "mend the reader"
            )
        self._pending[record.split].append(record)
        self.counts[record.split] += 1
        full = self.counts[record.split] % self.rows_per_shard == 0
        if full or len(self._pending[record.split]) == ROWS_PER_GROUP:
            self._flush(record.split)
        if full:
            self._open.pop(record.split).close()

    def finish(self) -> None:
        """Write what is still queued."""
        for split in SPLITS:
            if self._pending[split]:
                self._flush(split)
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def _flush(self, split: str) -> None:
        if split not in self._open:
            number = (self.counts[split] - 1) // self.rows_per_shard
            path = self.folder / f"{split}-{number:05d}.parquet"
            self._open[split] = pq.ParquetWriter(path, FEATURES.arrow_schema)
        records, self._pending[split] = self._pending[split], []
        self._open[split].write_batch(batch_of(records))


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``out`` to fill; rename it on success, remove it on failure."""
    check_out(out)
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
        UserError: when the folder holds no shards of that split, or damaged ones.
    """
    shards = shards_of(root, split)
    if not count_faces(root, split):  # which names a file that is no shard
        raise UserError(
            f"{root}: no {split}-*.parquet" + (" with a face in it" if shards else ""),
            "build it with `face-mllm data build RECIPE.yaml --out DIR`",
        )
    try:
        table = datasets.Dataset.from_parquet([str(shard) for shard in shards], features=FEATURES)
    except datasets.exceptions.DatasetGenerationError as error:
        damage = error.__cause__
        if not isinstance(damage, pa.ArrowException | OSError) or getattr(damage, "errno", None):
            raise  # a full disk, for one
        raise _unreadable(f"{root}: {split}", damage) from error
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
        with _opened(shard) as file:
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=names):
                yield from batch.to_pylist()


def count_faces(root: Path | str, split: str) -> int:
    """Return how many faces a split has, by its shards' own account."""
    total = 0
    for shard in shards_of(root, split):
        with _opened(shard) as file:
            total += file.metadata.num_rows
    return total


def find_records(root: Path | str, split: str, ids: Set[str]) -> Iterator[FaceRecord]:
    """Yield the records of some ids in file order; row groups without any are not read."""
    for shard in shards_of(root, split):
        with _opened(shard) as file:
            for number in range(file.num_row_groups):
                if not ids.isdisjoint(file.read_row_group(number, ["id"])["id"].to_pylist()):
                    rows = file.read_row_group(number).to_pylist()
                    yield from (FaceRecord.from_row(row) for row in rows if row["id"] in ids)


@contextmanager
def _opened(shard: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(shard, pre_buffer=False) as file:  # its buffers outlive a row group
            missing = sorted(REQUIRED.difference(file.schema_arrow.names))
            if missing:
                raise UserError(
                    f"{shard}: no column {', '.join(missing)}, so not a dataset of this package",
                    "turn the table into one with `data build` and `source: table`",
                )
            yield file
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(shard, error) from error


def _unreadable(shard: Path | str, error: BaseException) -> UserError:
    return UserError(f"{shard}: unreadable ({brief(error)})", "build the data again")


def iter_records(root: Path | str, splits: Iterable[str] = SPLITS) -> Iterator[FaceRecord]:
    """Stream the records of the splits that exist, in file order."""
    for split in splits:
        for row in iter_rows(root, split):
            yield FaceRecord.from_row(row)


def read_manifest(root: Path | str) -> dict[str, Any]:
    """Read ``manifest.json`` of a built dataset."""
    path = Path(root) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found; {root} is not a built dataset",
            "build it with `face-mllm data build RECIPE.yaml --out DIR`",
        ) from error
    except ValueError as error:  # no json, or no text at all
        raise UserError(f"{path}: not valid json ({error})", "build the dataset again") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: no keys with values inside", "build the dataset again")
    return manifest
