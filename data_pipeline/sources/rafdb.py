"""``rafdb``: RAF-DB basic, seven expressions, with the manual attributes where they are there.

``EmoLabel/list_patition_label.txt`` (misspelt in the distribution; mirrors mend it) names
``train_00001.jpg 5``; the aligned crop is ``Image/aligned/train_00001_aligned.jpg``. Codes run from
1 in an order no other set has. Layout: zyh-uaiaaaa/Generalizable-FER, zfkarl/UniFER.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from data_pipeline.labels.codes import codes
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    RESEARCH,
    absent,
    class_images,
    class_names,
    decode,
    face,
    find,
    listed,
)
from data_pipeline.sources.base import (
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    canonical_split,
)
from face_mllm.errors import UserError

LISTS = ("list_patition_label.txt", "list_partition_label.txt")
MIRROR = ("train/1", "DATASET/train/1")
COMPOUND = ("8", "9", "10", "11")  # codes only the compound list has
RACES = ("white", "black", "asian")


class RafdbOptions(SourceOptions):
    """Options of ``rafdb`` and ``rafdb_compound``.

    Args:
        image: the aligned crops, or the photographs they come from.
        manual: read gender, race and age group from ``Annotation/manual`` where it is there.
    """

    image: Literal["aligned", "original"] = "aligned"
    manual: bool = True


def list_file(root: Path, part: str) -> Path | None:
    """Return the list of ``basic`` or ``compound`` under ``root``, never that of the other."""
    inside = [f"{part}/EmoLabel/{name}" for name in LISTS]
    found = find(root, *inside, *(f"EmoLabel/{name}" for name in LISTS))
    home = found.parent.parent.name if found else part
    return None if home in {"basic", "compound"} - {part} else found


def read_list(path: Path, source: str, field: str, options: RafdbOptions) -> Rows:
    """Yield a record per line ``train_00001.jpg 5`` of a RAF-DB list.

    Raises:
        UserError: a line of another shape or with another dataset's code.
    """
    base = path.parent.parent
    manual = base / "Annotation" / "manual"
    with_manual = options.manual and manual.is_dir()
    for number, text in listed(path):
        where = f"{path}: line {number}"
        name, _, code = text.rpartition(" ")
        split = canonical_split(name.partition("_")[0])
        if split is None:
            raise UserError(f"{where}: {text!r}", "expected a line such as `train_00001.jpg 5`")
        labels = {field: decode(source, field, code, where)}
        stem, suffix = Path(name.strip()).stem, Path(name.strip()).suffix
        if with_manual:
            labels |= manual_labels(manual / f"{stem}_manu_attri.txt")
        file = f"{stem}_aligned{suffix}" if options.image == "aligned" else f"{stem}{suffix}"
        image = base / "Image" / options.image / file
        yield face(source, options, stem, split, image, labels)


def manual_labels(path: Path) -> dict[str, Any]:
    """Return gender, race and age group of ``<stem>_manu_attri.txt``, nothing without the file.

    Lines 0-4 are landmarks, line 5 gender, 6 race, 7 age group.

    Raises:
        UserError: fewer lines, or a code that means nothing.
    """
    if not path.is_file():
        return {}
    lines = list(listed(path))[5:8]
    if len(lines) < 3:
        raise UserError(f"{path}: fewer than 8 lines", "restore it from the distribution")
    found = {
        field: decode("rafdb", field, text, f"{path}: line {number}")
        for field, (number, text) in zip(("gender", "race", "age_band"), lines, strict=True)
    }
    race = found.pop("race")
    labels = {field: word for field, word in found.items() if word is not None}
    return labels | {"attributes": {name: name == race for name in RACES}}


def read_rows(root: Path, options: RafdbOptions, protocol: Protocol) -> Rows:
    """Yield one record per line of the list, or per picture of a mirror with folders 1 to 7.

    Raises:
        UserError: neither a list nor such a mirror, or a line nobody can read.
    """
    path = list_file(root, "basic")
    if path is not None:
        yield from read_list(path, "rafdb", "expression", options)
        return
    mirror = find(root, *MIRROR)
    if mirror is None:
        raise UserError(f"{root}: no basic/EmoLabel/{LISTS[0]}", "point root at RAF-DB's folder")
    for split in ("train", "test"):
        for item in class_images(mirror.parent.parent / split, codes("rafdb", "expression")):
            if isinstance(item, Dropped):
                yield item
            else:
                stem = item[0].stem.removesuffix("_aligned")
                labels = {"expression": item[1]}
                yield face("rafdb", options, stem, split, item[0], labels)


def detect_list(root: Path, part: str) -> Variant | None:
    """Return the variant of ``basic`` or ``compound`` by its list.

    A list outside a folder of either name is told by its codes: those above 7 are compound.
    """
    path = list_file(root, part)
    if path is None:
        return None
    home = path.parent.parent
    if home.name != part:
        compound = any(text.rpartition(" ")[2] in COMPOUND for _, text in listed(path))
        return _variant(path) if compound is (part == "compound") else None
    return _variant(path)


def _variant(path: Path) -> Variant:
    home = path.parent.parent
    gaps = absent(home, "Image/aligned", "Image/original", "Annotation/manual")
    spelt = "" if path.name == LISTS[0] else f"list file spelt {path.name}"
    return Variant("original layout, list and aligned crops", gaps, (spelt,) if spelt else ())


def detect(root: Path) -> Variant | None:
    """Tell the original layout from the mirror with numbered folders."""
    if found := detect_list(root, "basic"):
        return found
    mirror = find(root, *MIRROR)
    if mirror is not None and class_names(mirror.parent) <= {str(code) for code in range(1, 8)}:
        notes = ("folders 1-7 are read as RAF-DB's own codes", "no manual attributes")
        return Variant("mirror, one folder per class", absent(mirror.parent.parent, "test"), notes)
    return None


SOURCE = Source(
    name="rafdb",
    summary="RAF-DB basic: seven expressions, aligned crops; gender, race, age group",
    read_rows=read_rows,
    options=RafdbOptions,
    protocols=protocols("rafdb"),
    detect=detect,
    licence=RESEARCH,
)
