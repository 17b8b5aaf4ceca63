"""The tokens of a face's questions as training sees them, and which of them carry the loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.records import QA
from face_mllm.errors import UserError

if TYPE_CHECKING:
    from face_mllm.model.processing import FaceProcessor

EMBEDDED = "embedded:smollm2"
_MARKS = str.maketrans({"\n": "⏎", "\t": "⇥"})


@dataclass(frozen=True)
class Token:
    """One token as text; ``loss`` says that the model learns to predict it."""

    text: str
    loss: bool = False


class Tokens:
    """Questions to tokens, by the very processor that makes training rows.

    Args:
        processor: of the model.
        reference: what it was loaded from, for the reader of the sheet.
    """

    def __init__(self, processor: FaceProcessor, reference: str) -> None:
        self.processor = processor
        self.reference = reference

    def prefix(self) -> list[Token]:
        """What stands before every question of a face; the picture is one entry."""
        image = self.processor.image_token_id
        ids = self.processor.prefix_ids()
        words = [Token(self._text(token)) for token in ids if token != image]
        count = ids.count(image)
        return [*words, Token("picture" if count == 1 else f"picture x {count}")]

    def branch(self, qa: QA) -> list[Token]:
        """One question with its answer and the end-of-turn token."""
        ids, start = self.processor.branch_ids(qa.question, qa.answer)
        return [Token(self._text(token), place >= start) for place, token in enumerate(ids)]

    def _text(self, token: int) -> str:
        """The token's text; bytes of a character that takes several tokens by their name."""
        tokenizer = self.processor.tokenizer
        text = tokenizer.decode([token])
        if "�" in text or not text:
            text = str(tokenizer.convert_ids_to_tokens(token))
        return text.translate(_MARKS)


def default_tokenizer() -> str | None:
    """Return the embedded model where it is in the cache: nothing is downloaded to show a face."""
    from face_mllm.references import is_cached

    return EMBEDDED if is_cached(EMBEDDED) else None


def load_tokens(reference: str) -> Tokens:
    """Load the tokenizer of a model.

    Args:
        reference: a model that `train` wrote, whose system message and number of picture tokens
            count too; or any folder with a tokenizer, a hub id, ``embedded:smollm2``.

    Raises:
        UserError: no such model, or one without a chat template.
    """
    from face_mllm.model.processing import (
        SETTINGS_FILE,
        FaceProcessor,
        load_image_processor,
        load_tokenizer,
    )
    from face_mllm.references import resolve

    folder: Path = resolve(reference)
    if (folder / SETTINGS_FILE).is_file():
        return Tokens(FaceProcessor.load(folder), reference)
    pictures = load_image_processor(resolve("embedded:face-clip"))  # any: only words are asked
    try:
        return Tokens(FaceProcessor(pictures, load_tokenizer(folder), 1), reference)
    except UserError as error:
        raise UserError(f"{reference}: {error.message}", error.remedy) from error
