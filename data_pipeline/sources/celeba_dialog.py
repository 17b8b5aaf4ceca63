"""``celeba_dialog``: CelebA-Dialog, captions and degrees of five attributes (Jiang et al. 2021).

Degrees from 0 to 5 as its own readme describes them. Two columns do not mean what they are called:
``No_Beard`` counts up to a bushy beard (0 is none) and ``Young`` counts up in age (0 is below 15, 5
above 60), so it is an age band here. Eyeglasses of degree 4 and 5 are sunglasses. A degree of -1 is
unknown. The lists speak of CelebA's pictures, the HQ edition (``captions_hq.json``,
``image/0.jpg``) of CelebA-HQ's numbers; only ``CelebA-HQ-to-CelebA-mapping.txt`` relates the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.records import SPLITS, FaceRecord
from data_pipeline.sources._lists import first, home, need_home, read_list
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    hash_split,
    reading,
)
from face_mllm.errors import UserError

DEGREES = ("Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young")
FOLDERS = ("", "celeba_caption/", "text_hq/", "text/", "metadata/")
PICTURES = ("image", "images_hq/image", "img_align_celeba", "Img/img_align_celeba")


def _names(*stems: str) -> tuple[str, ...]:
    return tuple(f"{folder}{stem}" for stem in stems for folder in FOLDERS)


CAPTIONS = _names("captions.json", "captions_hq.json")
COMBINED = _names("combined_annotation.txt", "combined_annotation_hq.txt")
LISTS = {split: _names(f"{split}_attr_list.txt", f"{split}_attr_list_hq.txt") for split in SPLITS}
IDENTITY = _names("identity_CelebA.txt", "identity_hq.txt")
MARKS = (*CAPTIONS, *COMBINED)


class DialogOptions(SourceOptions):
    """Options of ``celeba_dialog``.

    Args:
        images: folder of the pictures the lists name; looked for in the root when absent.
    """

    images: Path | None = None


def detect(root: Path) -> Variant | None:
    """Recognise CelebA-Dialog by its captions or its combined list."""
    base = home(root, *MARKS)
    if base is None:
        return None
    captions, listed = first(base, *CAPTIONS), first(base, *COMBINED, *LISTS["train"])
    edition = "HQ numbers" if captions and "hq" in captions.stem else "CelebA's pictures"
    held = [word for word, path in (("captions", captions), ("degrees", listed)) if path]
    missing = [group[0] for group in (CAPTIONS, LISTS["train"]) if first(base, *group) is None]
    missing += [] if first(base, *PICTURES) else [PICTURES[0]]
    return Variant(f"{edition}: {' and '.join(held)}", tuple(missing))


def read_rows(root: Path, options: DialogOptions, protocol: Protocol) -> Rows:
    """Yield a record per listed face, or per captioned one where there are no lists.

    Raises:
        UserError: neither captions nor lists, or a degree that is none.
    """
    base, name = need_home(root, "CelebA-Dialog", *MARKS), options.name or "celeba_dialog"
    folder = (options.images or first(base, *PICTURES) or base / PICTURES[0]).resolve()
    captions = _captions(first(base, *CAPTIONS))
    persons = _persons(first(base, *IDENTITY))
    for file, split, degrees in _rows(base, captions):
        caption, labels = captions.get(file, ""), _labels(degrees, protocol.settings)
        key = f"{name}_{Path(file).stem}"
        subject = f"{name}_{persons[file]}" if file in persons else key
        if not caption and not labels:
            yield Dropped("unlabelled", file)
            continue
        yield FaceRecord(
            id=key,
            source=name,
            split=split or hash_split(subject, protocol.settings["split"]),
            subject=subject,
            image=f"{folder}/{file}",
            labels=labels,
            caption=caption,
            licence=options.licence,
        )


def _rows(base: Path, captions: Mapping[str, str]) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Yield (file, split or nothing, degrees) from the first kind of list there is."""
    lists = {split: path for split in SPLITS if (path := first(base, *LISTS[split]))}
    combined = first(base, *COMBINED)
    if not lists and combined:
        lists = {"": combined}
    for split, path in lists.items():
        table = _degrees(path)
        for file, *row in table.itertuples(index=False):
            yield file, split, dict(zip(DEGREES, row, strict=True))
    if not lists:
        yield from ((file, "", {}) for file in captions)


def _degrees(path: Path) -> pd.DataFrame:
    """Return a list of degrees; header lines, where a copy has them, start with no picture."""
    with reading(path, ValueError), path.open(encoding="utf-8-sig") as file:
        heads = [file.readline() for _ in range(2)]
    skip = sum(bool(line.strip()) and ".jpg" not in line for line in heads)
    table = read_list(path, ("file", *DEGREES), skip)
    bad = ~table[list(DEGREES)].isin(range(-1, 6)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{path}: row {row + 1} ({table['file'][row]}): not five degrees from 0 to 5",
            "mend the row or download the file again",
        )
    return table


def _labels(degrees: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: int(degree) for name, degree in degrees.items() if degree >= 0}
    flags = {
        attribute: known[raw] >= settings["present_from"]
        for raw, attribute in (("Bangs", "bangs"), ("No_Beard", "beard"), ("Smiling", "smiling"))
        if raw in known
    }
    if "Eyeglasses" in known:
        flags["sunglasses"] = known["Eyeglasses"] >= settings["sunglasses_from"]
        if not flags["sunglasses"]:  # whether sunglasses count among eyeglasses differs by set
            flags["eyeglasses"] = known["Eyeglasses"] > 0
    labels: dict[str, Any] = {"attributes": flags} if flags else {}
    if "Young" in known:
        labels["age_band"] = codes("celeba_dialog", "age_band")[known["Young"]]
    return labels


def _captions(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    with reading(path, ValueError), path.open(encoding="utf-8-sig") as file:
        found = json.load(file, object_hook=_overall)
    return {
        name: " ".join(text.split())
        for name, text in found.items()
        if isinstance(text, str) and text
    }


def _overall(entry: dict[str, Any]) -> Any:
    """Keep only the whole-face caption of an entry while the file is parsed: it is large."""
    return entry.get("overall_caption", entry)


def _persons(path: Path | None) -> dict[str, int]:
    if path is None:
        return {}
    return read_list(path, ("file", "person")).set_index("file")["person"].to_dict()


SOURCE = Source(
    name="celeba_dialog",
    summary="CelebA-Dialog: captions and degrees of five attributes, full or HQ",
    read_rows=read_rows,
    options=DialogOptions,
    protocols=protocols("celeba_dialog"),
    detect=detect,
    licence="non-commercial research",
    overlaps=("celeba",),
)
