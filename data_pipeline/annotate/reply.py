"""What an annotator is to the rest of the house: pictures in, texts out."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

MAX_RAW = 2000  # characters kept of what was no answer
JPEG_QUALITY = 90

_DATA_URL = re.compile(
    r"data:[\w/+.-]+;base64,(?:[A-Za-z0-9+/=]|\s(?=[A-Za-z0-9+/=]{40}))+"  # broken lines too
)
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/=_-]{160,}")


@dataclass(frozen=True)
class Reply:
    """What came back about one picture.

    Args:
        text: the words, empty when there are none.
        refusal: why the annotator or its filter declined, when it said so by protocol.
        failure: why there is no answer at all; the face can be asked again another time.
        cut: the text ended at its longest length.
        tokens_in, tokens_out, cost: what it took, failed tries included.
    """

    text: str = ""
    refusal: str = ""
    failure: str = ""
    cut: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Annotator(Protocol):
    """Answers about pictures.

    Attributes:
        workers: calls of ``ask`` that may run at a time.
        batch: pictures per call.
        tries: how often a malformed answer is asked anew; 1 where the answer would be the same.
    """

    workers: int
    batch: int
    tries: int

    def ask(self, pictures: Sequence[Image.Image]) -> list[Reply]:
        """Return one reply per picture, in order."""

    def close(self) -> None:
        """Let go of connections and memory."""


def scaled(picture: Image.Image, max_side: int) -> Image.Image:
    """Return the picture no larger than ``max_side`` pixels."""
    small = picture.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return small


def data_url(picture: Image.Image, max_side: int) -> str:
    """Return a JPEG data URL: pixels only, none of the file's own metadata."""
    buffer = io.BytesIO()
    scaled(picture, max_side).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scrubbed(text: str, key: str = "") -> str:
    """Return a text fit for files and screens: without the key and without pictures.

    Servers echo what they were sent, whole or in part.
    """
    if key:
        text = text.replace(key, "[key]")
    text = _DATA_URL.sub("[picture]", text)
    return _BASE64_RUN.sub("[...]", text)
