"""``facecaption``: FaceCaption-15M, written captions of faces on the web (Dai et al. 2024).

Distributed as one parquet of links, boxes and captions. Its column names are found, not assumed,
and reported by ``detect``: the caption of the face is preferred to the web page's. Pictures come
from img2dataset run on that parquet, or from a column of the parquet itself. The order of the box
is undocumented, so boxes are read only where ``box:`` says what it is; they are scaled to what
img2dataset made of the picture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._img2dataset import Sample, form, samples
from data_pipeline.sources._lists import home
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
)
from face_mllm.errors import UserError

BATCH = 256
NEARLY = 0.02  # relative difference of the two sides' scales that rounding explains
HOW = (
    "download the links: img2dataset --url_list FILE.parquet --input_format parquet --url_col url "
    "--caption_col FACE_CAPTION_COLUMN --output_format webdataset --resize_mode no "
    "--save_additional_columns '[\"FACE_BOX_COLUMN\"]'"
)


class FaceCaptionOptions(SourceOptions):
    """Options of ``facecaption``.

    Args:
        box: order of the numbers in the box column; ``none`` leaves boxes out.
    """

    box: Literal["none", "xyxy", "xywh"] = "none"


def caption_column(names: Sequence[str]) -> str:
    """Return the column of the face's caption, nothing when there is none."""
    words = [name for name in names if "caption" in name.lower() or "text" in name.lower()]
    ranked = sorted(words, key=lambda name: ("face" not in name.lower(), "laion" in name.lower()))
    return ranked[0] if ranked else ""


def box_column(names: Sequence[str]) -> str:
    """Return the column of the face's box, nothing when there is none."""
    return next((name for name in names if "box" in name.lower()), "")


def picture_column(schema: pa.Schema) -> str:
    """Return the column of encoded pictures or of Hugging Face image structs, or nothing."""
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct)
    return next((field.name for field in schema if any(kind(field.type) for kind in kinds)), "")


def _files(root: Path) -> list[Path]:
    base = root if root.is_dir() else root.parent
    found = sorted(base.glob("FaceCaption*.parquet")) if root.is_dir() else [root]
    return [path for path in found if path.suffix == ".parquet" and path.is_file()]


def detect(root: Path) -> Variant | None:
    """Recognise the published parquet; the columns found are part of the name."""
    mark = home(root, "FaceCaption-v1.parquet", "FaceCaption-v2.parquet") or root
    files = [path for path in _files(mark) if path.name.startswith("FaceCaption")]
    if not files:
        return None
    schema = _schema(files[0])
    found = f"caption {caption_column(schema.names)!r}, box {box_column(schema.names)!r}"
    kind = form(mark) or ("parquet" if picture_column(schema) else "")
    missing = () if kind else ("00000.tar",)
    return Variant(f"{files[0].name}: {found}", missing, () if kind else (HOW,))


def read_rows(root: Path, options: FaceCaptionOptions, protocol: Protocol) -> Rows:
    """Yield a record per picture there is.

    Raises:
        UserError: links without pictures, or no column of captions.
    """
    base, name = (
        home(root, "FaceCaption-v1.parquet", "FaceCaption-v2.parquet") or root,
        "facecaption",
    )
    for sample in samples(base) if form(base) else _embedded(base):
        if sample.image is None:
            yield Dropped("link not downloaded", sample.key)
            continue
        column = caption_column(list(sample.facts))
        if not column:
            raise UserError(
                f"{base}: {sample.key}: no caption among {', '.join(sample.facts)}", HOW
            )
        box = _box(sample.facts, options.box)
        key = f"{options.name or name}_{sample.key}"
        if box is None:
            yield Dropped("box does not fit the picture", sample.key)
            continue
        yield FaceRecord(
            id=key,
            source=options.name or name,
            split=hash_split(key, protocol.settings["split"]),
            subject=key,
            image=sample.image,
            labels={},
            box=box,
            caption=" ".join(str(sample.facts[column] or "").split()),
            licence=options.licence,
        )


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not readable as parquet ({error})", "download it again"
        ) from error


def _embedded(base: Path) -> Iterator[Sample]:
    """Yield the rows of parquet files that hold their pictures."""
    files = _files(base)
    if not files:
        raise UserError(f"{base}: not FaceCaption: no FaceCaption-v*.parquet, no shards", HOW)
    for path in files:
        column = picture_column(_schema(path))
        if not column:
            raise UserError(f"{path}: holds links only, no pictures", HOW)
        number = 0
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    image = row.pop(column)
                    if isinstance(image, dict):
                        image = image.get("bytes")
                    yield Sample(f"{path.stem}_{number:08d}", image, row)


def _box(facts: dict[str, Any], order: str) -> tuple[float, ...] | None:
    """Return the box in px of the picture as it is, () without one, None when it cannot be."""
    raw = facts.get(box_column(list(facts)))
    if order == "none" or raw is None:
        return ()
    try:
        values = ast.literal_eval(raw) if isinstance(raw, str) else raw
        x0, y0, x1, y1 = (float(value) for value in values)
        scales = [
            float(facts.get(side) or 1)
            / float(facts.get(f"original_{side}") or facts.get(side) or 1)
            for side in ("width", "height")
        ]
    except (ValueError, TypeError, SyntaxError):
        return None
    if order == "xywh":
        x1, y1 = x0 + x1, y0 + y1
    padded = abs(scales[0] - scales[1]) > NEARLY * max(scales)
    if padded or x1 <= x0 or y1 <= y0:
        return None
    return tuple(value * scales[place % 2] for place, value in enumerate((x0, y0, x1, y1)))


SOURCE = Source(
    name="facecaption",
    summary="FaceCaption-15M: written captions, pictures by img2dataset or in the parquet",
    read_rows=read_rows,
    options=FaceCaptionOptions,
    protocols=protocols("facecaption"),
    detect=detect,
    licence="captions CC BY 4.0, pictures of their owners",
    overlaps=("laion_face",),
)
