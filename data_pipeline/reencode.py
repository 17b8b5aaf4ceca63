"""Pictures saved anew: small enough to train from, upright, without metadata."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.faces.crop import labels_in_crop
from data_pipeline.records import FaceRecord
from data_pipeline.sources.base import Dropped


class Reencode(BaseModel):
    """How to save pictures anew.

    Args:
        side: the shorter side becomes this many pixels; smaller pictures keep their size.
        quality: of the JPEG.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: int = Field(ge=16)
    quality: int = Field(default=90, ge=1, le=95)


def reencoded(record: FaceRecord, how: Reencode) -> FaceRecord | Dropped:
    """Return a record with its picture as a new JPEG, box and landmarks in its pixels.

    Large JPEGs are decoded at an eighth, a quarter or half their size where that is enough.
    """
    assert isinstance(record.image, bytes)
    try:
        with Image.open(io.BytesIO(record.image)) as image:
            before = min(image.size)
            image.draft("RGB", (how.side, how.side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Dropped("image unreadable", record.id)
    shrink = min(1.0, how.side / min(upright.size))
    if shrink < 1:
        width, height = (round(edge * shrink) for edge in upright.size)
        upright = upright.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=how.quality, comment=b"")
    scale = min(1.0, how.side / before)
    if scale == 1:
        return replace(record, image=buffer.getvalue())
    return replace(
        record,
        image=buffer.getvalue(),
        box=tuple(x * scale for x in record.box),
        labels=labels_in_crop(record.labels, np.array([[scale, 0, 0], [0, scale, 0]])),
    )
