"""``face-mllm describe``: rows of estimates for photographs, as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.records import open_rgb
from face_mllm.errors import UserError
from face_mllm.progress import Progress, notice, quiet_libraries

FORMATS = ("json", "csv")


def describe_images(
    model: Path,
    images: Sequence[Path],
    format_: str = "json",
    progress: Progress | None = None,
    faces: str = "auto",
) -> str:
    """Describe the faces in photographs.

    Args:
        model: artifact folder.
        images: photographs; all are opened and their faces cut out before the model loads, so a
            broken one costs nothing.
        format_: ``json`` (one object a line) or ``csv`` (nested keys joined by dots).
        progress: told how many are done.
        faces: ``auto``, ``none`` or ``detect`` (see :func:`face_mllm.photographs.policy_for`).

    Returns:
        The text, one row per face: images in the order given, faces from the largest on.

    Raises:
        UserError: an unknown format, a missing or broken image or one without a face, no
            detector where one is needed, or a folder without an artifact.
    """
    if format_ not in FORMATS:
        raise UserError(f"format {format_!r}", f"choose {' or '.join(FORMATS)}")
    for image in images:
        open_rgb(str(image), str(image))
    quiet_libraries()
    from face_mllm.chat import FaceMLLM
    from face_mllm.photographs import open_faces, policy_for

    policy = policy_for(model, faces)
    # whole photographs are not kept in memory, crops are
    crops = {image: open_faces(image, policy) for image in images if policy.mode == "detect"}
    notice("reading the model")
    loaded = FaceMLLM.from_pretrained(model)
    rows = []
    for number, image in enumerate(images):
        if progress:
            progress(number, len(images), image.name)
        for face in crops.get(image) or open_faces(image, policy):
            row = {"image": str(image), "box": list(face.box)}
            rows.append(row | loaded.describe(face.image))
    return to_csv(rows) if format_ == "csv" else to_json_lines(rows)


def to_json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with one column per leaf, nested keys joined by dots, absent values empty."""
    flat = [flatten(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flatten(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys; lists to space-separated text."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
