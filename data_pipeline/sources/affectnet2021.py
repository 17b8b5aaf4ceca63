"""``affectnet2021``: the cropped release, one npy per label beside the images.

``train_set/annotations/<n>_exp.npy`` holds a 0-d array, often a string ("3"). The folder is listed
once (1.15 million files) and kept as numbers. Mirrors with numbered class folders are numbered
alphabetically, not in AffectNet's order, so they are read only when told which. Layout:
armand-07/emotion_recognition, CMU-MultiComp-Lab/OpenFace-3.0.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.labels.codes import codes
from data_pipeline.labels.expressions import SPELLINGS
from data_pipeline.protocols import Protocol, protocols
from data_pipeline.sources._expression import (
    RESEARCH,
    absent,
    class_names,
    class_rows,
    decode,
    face,
    find,
    without,
)
from data_pipeline.sources.base import (
    Rows,
    Source,
    SourceOptions,
    Variant,
    canonical_split,
)
from data_pipeline.sources.folder import subfolders
from face_mllm.errors import UserError

SETS = ("train_set", "val_set")
LABEL = "_exp.npy"


class AffectNet2021Options(SourceOptions):
    """Options of ``affectnet2021``.

    Args:
        mirror: what the numbers of a mirror's class folders mean: the alphabetical order of the
            words, or AffectNet's own codes. Folders named by words need no answer.
    """

    mirror: Literal["", "alphabetical", "native"] = ""


def read_rows(root: Path, options: AffectNet2021Options, protocol: Protocol) -> Rows:
    """Yield one record per ``_exp.npy``, in order of number; or per picture of a mirror.

    Raises:
        UserError: no such folders, an unreadable npy, or a mirror with numbered classes and no
            ``mirror`` to say in which order.
    """
    read = _npy if _home(root) else _mirror
    yield from without(read(root, options, protocol), protocol.settings["left_out"])


def _home(root: Path) -> Path | None:
    found = find(root, *(f"{name}/annotations" for name in SETS))
    return found.parent.parent if found else None


def _npy(root: Path, options: AffectNet2021Options, protocol: Protocol) -> Rows:
    home = _home(root)
    assert home is not None
    for name, split in protocol.settings["splits"].items():
        folder = home / name
        if not (folder / "annotations").is_dir():
            raise UserError(f"{folder}/annotations: no such folder", "unpack this set too")
        for number in _numbers(folder / "annotations"):
            path = folder / "annotations" / f"{number}{LABEL}"
            word = decode("affectnet2021", "expression", _item(path), str(path))
            image = folder / "images" / f"{number}.jpg"
            key = f"{name.removesuffix('_set')}_{number}"
            yield face("affectnet2021", options, key, split, image, {"expression": word})


def _numbers(folder: Path) -> array[int]:
    """Return the image numbers in rising order; they have gaps."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        stems = (name.removesuffix(LABEL) for name in names if name.endswith(LABEL))
        return array("q", sorted(int(stem) for stem in stems if stem.isdecimal()))


def _item(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False).item()
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: unreadable ({error})", "restore it from the release") from error


def _mirror_folders(root: Path) -> list[tuple[str, Path]]:
    found = find(root, "train", "Train")
    places = subfolders(found.parent) if found else []
    named = ((canonical_split(place.name), place) for place in places)
    return [(split, place) for split, place in named if split is not None]


def _mirror(root: Path, options: AffectNet2021Options, protocol: Protocol) -> Rows:
    splits = protocol.settings["splits"]
    folders = [(splits.get(f"{name}_set", name), at) for name, at in _mirror_folders(root)]
    if not folders:
        raise UserError(f"{root}: no {SETS[0]}/annotations", "point root at the unpacked release")
    words: Mapping[Any, Any] = SPELLINGS
    if any(place.name.isdecimal() for place in subfolders(folders[0][1])):
        if not options.mirror:
            raise UserError(
                f"{folders[0][1]}: numbered class folders: mirrors of AffectNet number them "
                "alphabetically (0 anger), the release does not (0 neutral)",
                "look at a few pictures, then set `mirror: alphabetical` or `mirror: native`",
            )
        order = "expression" + ("_alphabetical" if options.mirror == "alphabetical" else "")
        words = codes("affectnet2021", order)
    yield from class_rows("affectnet2021", options, folders, words)


def detect(root: Path) -> Variant | None:
    """Tell the npy release from mirrors with class folders."""
    if home := _home(root):
        parts = (f"{name}/{part}" for name in SETS for part in ("images", "annotations"))
        return Variant("2021 release, npy annotations", absent(home, *parts))
    folders = [class_names(place) for _, place in _mirror_folders(root)]
    classes = {name.lower() for names in folders for name in names}
    if "0" in classes and classes <= {str(number) for number in range(8)}:
        notes = ("usually numbered alphabetically, 0 anger: say which with `mirror:`",)
        return Variant("mirror, numbered class folders", notes=notes)
    # without contempt it may be anybody's seven expressions
    if classes <= set(SPELLINGS) and "contempt" in {SPELLINGS[name] for name in classes}:
        return Variant("mirror, class folders named by words")
    return None


SOURCE = Source(
    name="affectnet2021",
    summary="AffectNet 2021 cropped release: npy annotations; also its class-folder mirrors",
    read_rows=read_rows,
    options=AffectNet2021Options,
    protocols=protocols("affectnet2021"),
    detect=detect,
    licence=RESEARCH,
    overlaps=("affectnet2017",),
)
