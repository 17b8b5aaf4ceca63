"""``ffhq_features``: FFHQ-Features-Dataset, one json of face attributes per FFHQ picture.

Every label is a prediction of a machine (Azure Face), none a human's: age, gender, pose, emotion
scores of which the largest counts, confidences of hair, beard and accessories, taken as present
from the protocol's threshold on. Angles are degrees as given; whether their signs follow this
package's (yaw > 0 to the picture's left) is not documented by the source. A list may be empty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.labels.codes import codes
from data_pipeline.labels.expressions import canonical_expression
from data_pipeline.labels.validate import GENDERS, POSE_AXES
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import FaceRecord
from data_pipeline.sources._lists import first, home, need_home
from data_pipeline.sources.base import Dropped, Rows, Source, SourceOptions, Variant, reading
from face_mllm.errors import UserError

MARKS = ("json/00000.json", "ffhq/json/00000.json", "json")
PICTURES = ("images1024x1024", "thumbnails128x128", "images", "images256x256", "ffhq")
FACIAL_HAIR = {"beard": "beard", "moustache": "mustache", "sideburns": "sideburns"}


class FfhqOptions(SourceOptions):
    """Options of ``ffhq_features``.

    Args:
        images: folder of FFHQ's pictures (flat or in folders of a thousand); looked for beside
            ``json`` when absent.
    """

    images: Path | None = None


def detect(root: Path) -> Variant | None:
    """Recognise the set by ``json/00000.json`` or a numbered file in ``json``."""
    base = home(root, *MARKS, inner=("json",))
    if base is None or not _files(base):
        return None
    there = first(base, *PICTURES)
    name = f"json with {there.name}" if there else "json without pictures"
    note = "give FFHQ's pictures as `images:`"
    return Variant(name, () if there else (PICTURES[0],), () if there else (note,))


def _files(base: Path) -> list[str]:
    folder = base / "json"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(
        name for name in names if len(name) == 10 and name.endswith(".json") and name[:5].isdigit()
    )


def read_rows(root: Path, options: FfhqOptions, protocol: Protocol) -> Rows:
    """Yield a record per json in which a face was found.

    Raises:
        UserError: no ``json`` folder, or a file of another shape.
    """
    base = need_home(root, "FFHQ-Features", *MARKS, inner=("json",))
    name = options.name or "ffhq_features"
    folder = (options.images or first(base, *PICTURES) or base / PICTURES[0]).resolve()
    place = _place(folder)
    for file in _files(base):
        path, stem = base / "json" / file, file[:-5]
        faces = _read(path)
        if not faces:
            yield Dropped("no face found by the machine", file)
            continue
        key = f"{name}_{stem}"
        yield FaceRecord(
            id=key,
            source=name,
            split="train" if int(stem) < protocol.settings["first_val"] else "val",
            subject=key,
            image=str(folder / place.format(f"{int(stem) // 1000 * 1000:05d}", stem)),
            labels=_labels(faces[0].get("faceAttributes", {}), protocol.settings, path),
            licence=options.licence,
        )


def _place(folder: Path) -> str:
    """Return where a picture lies: in a folder of its thousand or not, png or another kind."""
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            inside = next(iter(sorted(os.listdir(folder / name))), "") if name.isdigit() else name
            if inside and Path(inside).stem.isdigit():
                return ("{0}/{1}" if name.isdigit() else "{1}") + Path(inside).suffix
    return "{0}/{1}.png"


def _read(path: Path) -> list[dict[str, Any]]:
    with reading(path, json.JSONDecodeError):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(found, list) or not all(isinstance(face, dict) for face in found):
        raise UserError(f"{path}: not a list of faces", "download it again")
    return found


def _labels(face: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    emotion, pose = face.get("emotion") or {}, face.get("headPose") or {}
    try:
        labels: dict[str, Any] = {
            "age": face.get("age"),
            "gender": str(face.get("gender", "")).lower(),
            "head_pose": {axis: float(pose[axis]) for axis in POSE_AXES if axis in pose},
            "attributes": dict(_attributes(face, settings["threshold"])),
        }
        if any(emotion.values()):
            labels["expression"] = canonical_expression(max(emotion, key=emotion.__getitem__))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: {error!r}", "download it again") from error
    if labels["gender"] not in GENDERS:
        del labels["gender"]
    return {key: value for key, value in labels.items() if value not in (None, {})}


def _attributes(face: Mapping[str, Any], threshold: float) -> Iterator[tuple[str, bool]]:
    """Yield (attribute, present) of what the json speaks of."""
    hair, occlusion = face.get("hair") or {}, face.get("occlusion") or {}
    if "smile" in face:
        yield "smiling", face["smile"] >= threshold
    for raw, name in FACIAL_HAIR.items():
        if raw in (face.get("facialHair") or {}):
            yield name, face["facialHair"][raw] >= threshold
    if "bald" in hair and not hair.get("invisible"):
        yield "bald", hair["bald"] >= threshold
    colors = {row["color"].lower(): row["confidence"] for row in hair.get("hairColor") or ()}
    for color, attribute in codes("ffhq_features", "hair_color").items():
        if attribute and color in colors:
            yield str(attribute), colors[str(color)] >= threshold
    yield from _glasses(face.get("glasses"))
    if "lipMakeup" in (face.get("makeup") or {}):
        yield "wearing_lipstick", bool(face["makeup"]["lipMakeup"])
    if "accessories" in face:
        worn = {row["type"].lower(): row["confidence"] for row in face["accessories"]}
        yield "wearing_hat", worn.get("headwear", 0) >= threshold
    if "foreheadOccluded" in occlusion:
        yield "obstructed_forehead", bool(occlusion["foreheadOccluded"])


def _glasses(word: Any) -> Iterator[tuple[str, bool]]:
    """Goggles are neither; sunglasses say nothing of eyeglasses, which some sets count among."""
    kind = str(word).lower()
    if kind in ("noglasses", "readingglasses"):
        yield "eyeglasses", kind == "readingglasses"
        yield "sunglasses", False
    elif kind == "sunglasses":
        yield "sunglasses", True


SOURCE = Source(
    name="ffhq_features",
    summary="FFHQ-Features: age, gender, pose, emotion and attributes by a machine",
    read_rows=read_rows,
    options=FfhqOptions,
    protocols=protocols("ffhq_features"),
    detect=detect,
    licence="CC BY-NC-SA 4.0",
)
