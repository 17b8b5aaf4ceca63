"""``video_list``: clips as folders of frames, listed as ``<dir> <num_frames> <label>``.

The form in which DFEW, FERV39k, MAFW and AFEW are passed around (zengqunzhao/DFER-CLIP and
Exp-CLIP ``annotation/``). A clip is one subject; one record per frame that is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from data_pipeline.labels.codes import codes
from data_pipeline.labels.expressions import canonical_expression, find_expression
from data_pipeline.protocols import Protocol
from data_pipeline.sources._expression import RESEARCH, face, listed, once
from data_pipeline.sources.base import (
    HASH_SPLIT,
    IMAGE_SUFFIXES,
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    canonical_split,
    check_split_rule,
    hash_split,
    record_id,
)
from face_mllm.errors import UserError


class VideoListOptions(SourceOptions):
    """Options of ``video_list``.

    Args:
        lists: which files of the root are read (``DFEW_set_1_*.txt``); the split is the word
            train, val or test in the name of each.
        codes: ``lists``: 0 happiness ... as the public lists write; ``dfew``: from 1, as its own
            annotation.
        values: label -> expression word, or null to leave the class out; instead of ``codes``.
        clips: folder the listed folders are in, from the root; the root when absent.
        prefix: beginning of the listed folders that is not yours, taken off.
        frames: the first, middle or last frame, or that many evenly spaced ones.
        split: hash rule of a list without a split word in its name.
    """

    lists: str = "*.txt"
    codes: Literal["lists", "dfew"] = "lists"
    values: dict[Any, str | None] = Field(default_factory=dict)
    clips: Path | None = None
    prefix: str = ""
    frames: Literal["first", "middle", "last"] | PositiveInt = "middle"
    split: Annotated[str, AfterValidator(check_split_rule)] = HASH_SPLIT


def read_rows(root: Path, options: VideoListOptions, protocol: Protocol) -> Rows:
    """Yield one record per chosen frame of each listed clip.

    Raises:
        UserError: no list, several lists for one split, a malformed line or an unknown label.
    """
    yield from once(_read(root, options))


def _read(root: Path, options: VideoListOptions) -> Rows:
    words = _words(options)
    clips = (root.parent if root.is_file() else root) / (options.clips or "")
    for path, split in _lists(root, options.lists):
        for line, text in listed(path):
            where = f"{path}: line {line}"
            folder, length, label = _cells(text, where)
            clip = folder.removeprefix(options.prefix).lstrip("/") if options.prefix else folder
            word = _word(clip, label, words, where)
            if word is None:
                yield Dropped(f"class {label!r} left out by values", where)
                continue
            frames = _frames(clips / clip)
            if len(frames) < length:
                reason = "fewer frames than listed" if frames else "no frames in the clip's folder"
                yield Dropped(reason, f"{where}: {clips / clip}")
                continue
            key = "_".join(part for part in Path(clip).parts if part not in ("/", "."))
            subject = record_id(options.name or "video_list", key)
            share = split or hash_split(subject, options.split)
            for place in _chosen(length, options.frames):
                image = frames[place]
                name = f"{key}_{image.stem}"
                labels = {"expression": word}
                yield face("video_list", options, name, share, image, labels, key)


def _words(options: VideoListOptions) -> dict[str, str | None]:
    given = options.values or codes("video_list", f"expression_{options.codes}")
    return {
        str(label): None if word is None else canonical_expression(word)
        for label, word in given.items()
    }


def _lists(root: Path, pattern: str) -> list[tuple[Path, str | None]]:
    """Return the list files with their splits, None where the name tells none."""
    paths = [root] if root.is_file() else sorted(root.glob(pattern))
    if not paths:
        raise UserError(f"{root}: no list {pattern}", "name the list files with `lists:`")
    found = []
    for path in paths:
        named = (canonical_split(word) for word in re.split("[^A-Za-z]+", path.stem))
        found.append((path, next(filter(None, named), None)))
    splits = [split for _, split in found]
    if len(set(splits)) < len(splits):
        names = ", ".join(path.name for path in paths)
        raise UserError(
            f"{root}: several lists for one split: {names}",
            "choose a fold with `lists:`, such as `lists: '*set_1_*.txt'`",
        )
    return found


def _cells(text: str, where: str) -> tuple[str, int, str]:
    row = text.replace("\\", "/").rsplit(None, 2)
    if len(row) != 3 or not row[1].isdecimal() or not int(row[1]):
        raise UserError(f"{where}: {text!r}", "expected `<dir> <num_frames> <label>`")
    return row[0], int(row[1]), row[2]


def _word(clip: str, label: str, words: dict[str, str | None], where: str) -> str | None:
    if label not in words:
        raise UserError(f"{where}: unknown label {label!r}", "say what it means with `values:`")
    word, named = words[label], find_expression(Path(clip).parent.name)
    if word and named and word != named:
        raise UserError(
            f"{where}: label {label} read as {word}, but the clip lies under {named}",
            "the labels are numbered otherwise: set `codes:` or `values:`",
        )
    return word


def _frames(folder: Path) -> list[Path]:
    """Return the frames in order of number: ``10.jpg`` comes after ``9.jpg``."""
    if not folder.is_dir():
        return []
    images = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(images, key=_by_number)


def _by_number(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def _chosen(length: int, frames: str | int) -> Iterator[int]:
    """Yield places among ``length`` frames; several are the middles of equal stretches."""
    if frames in ("first", "last"):
        yield 0 if frames == "first" else length - 1
        return
    count = min(1 if frames == "middle" else int(frames), length)
    yield from ((2 * part + 1) * length // (2 * count) for part in range(count))


def detect(root: Path) -> Variant | None:
    """Recognise text files whose first line is a folder and two numbers."""
    paths = [root] if root.is_file() else sorted(root.glob("*.txt"))
    lists = [path.name for path in paths if _is_list(path)]
    return Variant("frame lists: " + ", ".join(lists)) if lists else None


def _is_list(path: Path) -> bool:
    try:
        row = next(listed(path), (0, ""))[1].rsplit(None, 2)
    except UserError:
        return False
    if len(row) < 3 or not all(cell.isdecimal() for cell in row[1:]):
        return False
    # a picture with several numbers is another dataset's list
    return not any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in row[0].split())


SOURCE = Source(
    name="video_list",
    summary="clips as folders of frames, `<dir> <num_frames> <label>` (DFEW, FERV39k, MAFW, AFEW)",
    read_rows=read_rows,
    options=VideoListOptions,
    default_protocol=lambda options: f"video_list/{options.lists}/{options.frames}",
    detect=detect,
    licence=RESEARCH,
)
