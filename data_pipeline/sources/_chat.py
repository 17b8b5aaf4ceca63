"""Conversations about one picture, in the shapes trainers read: what the three readers share.

Every user turn with the answer that follows is one question of task ``vqa``. Each is asked on its
own here, without the turns before it: a question that needs them ("and her?") loses by that.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator

from data_pipeline.protocols import Protocol
from data_pipeline.questions.forms import digest
from data_pipeline.records import QA, SPLITS, FaceRecord
from data_pipeline.sources.base import (
    HASH_SPLIT,
    Dropped,
    Rows,
    Source,
    SourceOptions,
    Variant,
    check_split_rule,
    hash_split,
    record_id,
)
from face_mllm.errors import UserError

ROLES = {"human": "user", "user": "user"} | {
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
TOKEN = re.compile(r"\s*<image>\s*")
GAP = re.compile(r"[\s,]*")
PIECE = 1 << 20
MOST_FILES = 50
LOOKED_AT = 200  # conversations, for one about a picture
LARGEST = 1 << 26  # characters of one conversation; beyond that the file is broken


def _split_word(word: str) -> str:
    return word if word in SPLITS else check_split_rule(word)


class ChatOptions(SourceOptions):
    """Options of ``llava``, ``sharegpt`` and ``messages``.

    Args:
        images: folder that picture paths start from; the file's own folder when absent.
        split: train, val or test for the whole file, or a hash rule over the pictures.
    """

    images: Path | None = None
    split: Annotated[str, AfterValidator(_split_word)] = HASH_SPLIT


def chat_source(name: str, summary: str, turns: str, pictures: str = "") -> Source:
    """Return the reader of one shape.

    Args:
        name: of the source.
        summary: one line.
        turns: key that holds the list of turns.
        pictures: key that names pictures, by which shapes with the same turns are told apart.
    """

    def detect(root: Path) -> Variant | None:
        path = _find(root, turns)
        if path is None or (pictures and _names_pictures(path) not in (pictures, "")):
            return None
        kind = "one object a line" if path.suffix.lower() == ".jsonl" else "one JSON array"
        return Variant(f"{path.name}: {kind}")

    def read_rows(root: Path, options: ChatOptions, protocol: Protocol) -> Rows:
        path = root if root.is_file() else _find(root, turns)
        if path is None:
            raise UserError(
                f"{root}: not exactly one .json or .jsonl file with {turns!r}",
                "give the file itself as root",
            )
        yield from _Reader(path, turns, options).rows()

    return Source(
        name=name,
        summary=summary,
        read_rows=read_rows,
        options=ChatOptions,
        default_protocol=lambda options: f"{name}/{options.split}",
        detect=detect,
    )


def _find(root: Path, turns: str) -> Path | None:
    """Return the one file in ``root`` (or ``root`` itself) whose first object has ``turns``."""
    files = sorted(root.glob("*.json*")) if root.is_dir() else [root]
    found = [path for path in files if path.suffix.lower() in (".json", ".jsonl")]
    if len(found) > MOST_FILES:  # one json per picture: another dataset
        return None
    found = [path for path in found if path.is_file() and _speaks(path, turns)]
    return found[0] if len(found) == 1 else None


def _speaks(path: Path, turns: str) -> bool:
    """Look at the head before parsing: the first line may be the whole of another large file."""
    with path.open("rb") as file:
        if f'"{turns}"'.encode() not in file.read(PIECE):
            return False
    try:
        return turns in next(iter_objects(path), (0, {}))[1]
    except UserError:
        return False


def _names_pictures(path: Path) -> str:
    """Return by which key the first conversation about a picture names it, empty if none does."""
    try:
        for _, item in islice(iter_objects(path), LOOKED_AT):
            for key in ("images", "image"):
                if item.get(key):
                    return key
    except UserError:
        pass  # broken rows are for reading to name
    return ""


def iter_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Stream (row from 1, object) of a JSON array or of lines of JSON, a piece in memory.

    Raises:
        UserError: naming the row that is no JSON object.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            found = _array(path, file) if start == "[" else _lines(path, file, start)
            for number, item in found:
                if not isinstance(item, dict):
                    raise _broken(path, number, "not an object")
                yield number, item
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}", "save it as UTF-8") from error


def _broken(path: Path, number: int, said: object) -> UserError:
    return UserError(f"{path}: row {number}: {said}", "mend the row; a download may be cut short")


def _lines(path: Path, file: Any, start: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        text = start + line if number == 1 else line
        if text.strip():
            try:
                yield number, json.loads(text)
            except json.JSONDecodeError as error:
                raise _broken(path, number, error) from error


def _array(path: Path, file: Any) -> Iterator[tuple[int, Any]]:
    decoder, text, place, number = json.JSONDecoder(), "", 0, 1
    while True:
        match = GAP.match(text, place)
        place = match.end() if match else place
        if text[place : place + 1] == "]":
            return
        try:
            item, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            more = file.read(PIECE)
            if not more or len(text) - place > LARGEST:
                raise _broken(path, number, error) from error
            text, place = text[place:] + more, 0
            continue
        yield number, item
        place, number = end, number + 1


class _Reader:
    def __init__(self, path: Path, turns: str, options: ChatOptions) -> None:
        self.path, self.turns, self.options = path, turns, options
        self.name = options.name or path.stem
        self.images = (options.images or path.parent).resolve()
        self.seen: Counter[int] = Counter()

    def rows(self) -> Rows:
        """Yield a record per conversation about one picture."""
        for number, item in iter_objects(self.path):
            if not isinstance(item.get(self.turns), list):
                raise _broken(self.path, number, f"no list {self.turns!r}")
            turns = [self._turn(turn, number) for turn in item[self.turns]]
            yield self._record(item, turns, f"row {number}", number)

    def _turn(self, turn: Any, number: int) -> tuple[str, str, list[Any]]:
        """Return (role, text, pictures named inside the turn)."""
        if not isinstance(turn, dict):
            raise _broken(self.path, number, "a turn is not an object")
        role = ROLES.get(str(turn.get("from", turn.get("role"))).lower(), "")
        content = turn.get("value", turn.get("content"))
        if content is None or not role:
            return role, "", []
        if isinstance(content, str):
            return role, TOKEN.sub(" ", content).strip(), []
        if not isinstance(content, list):
            raise _broken(self.path, number, "a turn is neither text nor a list of parts")
        parts = [part for part in content if isinstance(part, dict)]
        texts = [str(part.get("text") or "") for part in parts if _is_text(part)]
        return role, TOKEN.sub(" ", " ".join(texts)).strip(), _pictures_of(parts)

    def _record(
        self, item: dict[str, Any], turns: list[tuple[str, str, list[Any]]], where: str, number: int
    ) -> FaceRecord | Dropped:
        pictures = [*_listed(item.get("image")), *_listed(item.get("images"))]
        pictures += [picture for turn in turns for picture in turn[2]]
        if len(pictures) != 1:
            return Dropped("no picture" if not pictures else "more than one picture", where)
        qa = _pairs(turns)
        if not qa:
            return Dropped("no question with an answer", where)
        picture = pictures[0].get("path") if isinstance(pictures[0], dict) else pictures[0]
        if not isinstance(picture, str) or picture.startswith(("http://", "https://")):
            return Dropped("the picture is a link", where)
        key = self._key(item.get("id"), picture, number)
        image = self._image(picture, number)
        subject = key if isinstance(image, bytes) else f"{self.name}_{_unix(picture)}"
        rule = self.options.split
        return FaceRecord(
            id=key,
            source=self.name,
            split=rule if rule in SPLITS else hash_split(subject, rule),
            subject=subject,
            image=image,
            labels={},
            qa=qa,
            licence=self.options.licence,
        )

    def _key(self, given: Any, picture: str, number: int) -> str:
        """Return an id; conversations that repeat one (as LLaVA's do) are counted on."""
        stem = "" if picture.startswith("data:") else Path(picture).stem
        key = record_id(self.name, str(stem or f"{number:08d}" if given is None else given))
        self.seen[digest(key)] += 1
        count = self.seen[digest(key)]
        return key if count == 1 else f"{key}-{count}"

    def _image(self, picture: str, number: int) -> bytes | str:
        if not picture.startswith("data:"):
            return str(self.images / _unix(picture))
        try:
            return base64.b64decode(picture.split(",", 1)[-1], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _broken(self.path, number, f"picture is not base64 ({error})") from error


def _is_text(part: dict[str, Any]) -> bool:
    """``text``, or ``input_text`` and ``output_text`` as newer endpoints write."""
    return str(part.get("type")).endswith("text")


def _listed(value: Any) -> list[Any]:
    if value in (None, "", []):
        return []
    return list(value) if isinstance(value, list) else [value]


def _pictures_of(parts: list[dict[str, Any]]) -> list[Any]:
    """Return the pictures that parts name; a bare ``{"type": "image"}`` stands for ``images``."""
    found = [part.get("image_url", part.get("image", part.get("url"))) for part in parts]
    urls = [
        value.get("url", value.get("path")) if isinstance(value, dict) else value for value in found
    ]
    return [url for url in urls if url]


def _pairs(turns: list[tuple[str, str, list[Any]]]) -> tuple[QA, ...]:
    spoken = [(role, text) for role, text, _ in turns if role != "system"]
    pairs = pairwise(spoken)
    return tuple(
        QA("vqa", "all", question, answer)
        for (asker, question), (speaker, answer) in pairs
        if asker == "user" and speaker == "assistant" and question and answer
    )


def _unix(path: str) -> str:
    """Return a path with slashes; ``file://`` addresses are paths, too."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    return path.replace("\\", "/")
