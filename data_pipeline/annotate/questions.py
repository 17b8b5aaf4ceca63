"""What an annotator is asked about a face, and the one way its answer is read.

The asked attributes become a pydantic model: its JSON schema goes to the annotator, its validation
judges what comes back. ``unknown`` is an allowed answer everywhere and becomes no label.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from data_pipeline.labels.attributes import attribute, attributes, canonical_attribute
from face_mllm.errors import UserError

STATES = ("yes", "no", "unknown")
CAPTION = "caption"
CAPTION_QUESTION = "Describe this face."
MAX_CAPTION = 800

DEFAULT_ATTRIBUTES: tuple[str, ...] = tuple(
    """smiling mouth_open eyes_closed eyeglasses sunglasses wearing_hat wearing_earrings
    wearing_lipstick heavy_makeup beard mustache bald bangs black_hair brown_hair blond_hair
    gray_hair wavy_hair straight_hair bushy_eyebrows double_chin wrinkles freckles blurry""".split()  # noqa: SIM905
)
"""What a picture shows; gender, ancestry and attractiveness are asked about only by name."""

Answer = dict[str, str]
"""``{"caption": words, attribute: yes | no | unknown}``."""

_PROMPT = """You annotate photographs of faces for research. Look at the face in this picture and \
answer about what can be seen, nothing else. Do not say who it is.
Reply with one JSON object and no other text. Its keys and what each one asks:
{lines}
Answer every key{states}."""

_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|sorry, (?:but )?i|i can(?:'t|not| not)|i won't|i (?:am|'m) "
    r"(?:not able|unable)|i'm (?:not able|unable)|unable to (?:assist|help|comply)|as an ai\b)",
    re.IGNORECASE,
)


class RefusalError(Exception):
    """The annotator declined."""


class MalformedError(Exception):
    """The annotator said something that is not the JSON asked for; the text says why."""


def _plain_word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _one_line(value: object) -> object:
    return " ".join(value.split()) if isinstance(value, str) else value


_State = Annotated[Literal["yes", "no", "unknown"], BeforeValidator(_plain_word)]
_Caption = Annotated[str, Field(min_length=1, max_length=MAX_CAPTION), BeforeValidator(_one_line)]


@dataclass(frozen=True)
class Questions:
    """The attributes asked about, and whether a caption is wanted.

    Args:
        attributes: canonical names.
        caption: ask for a description in words too.
    """

    attributes: tuple[str, ...] = DEFAULT_ATTRIBUTES
    caption: bool = True

    @cached_property
    def model(self) -> type[BaseModel]:
        """The pydantic model of a right answer."""
        fields: dict[str, Any] = {CAPTION: (_Caption, ...)} if self.caption else {}
        fields |= dict.fromkeys(self.attributes, (_State, ...))
        config = ConfigDict(extra="forbid", protected_namespaces=())
        return create_model("FaceAnswer", __config__=config, **fields)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of a right answer, in the subset that strict endpoints take."""
        states = {"type": "string", "enum": list(STATES)}
        kinds: dict[str, Any] = {CAPTION: {"type": "string"}} if self.caption else {}
        kinds |= dict.fromkeys(self.attributes, states)
        return {
            "type": "object",
            "properties": kinds,
            "required": list(kinds),
            "additionalProperties": False,
        }

    @cached_property
    def prompt(self) -> str:
        """The words put to a general vision model."""
        lines = [f'"{CAPTION}": {_CAPTION_TASK}'] if self.caption else []
        lines += [f'"{name}": {attribute(name).question}' for name in self.attributes]
        states = ' with "yes", "no", or "unknown" where the picture does not show it'
        asked = f"{', the attributes' if self.caption else ''}{states}" if self.attributes else ""
        return _PROMPT.format(lines="\n".join(lines), states=asked)

    @property
    def answer_tokens(self) -> int:
        """About how many tokens a right answer takes."""
        return 10 + 9 * len(self.attributes) + 90 * self.caption

    def read(self, text: str, cut: bool = False) -> Answer:
        """Return the answer in a reply.

        Args:
            text: the whole reply; a code fence or words around the object are forgiven.
            cut: the reply ended because it reached its longest length.

        Raises:
            RefusalError: the annotator declined, in prose or in the caption.
            MalformedError: no JSON object, or not the keys and values asked for.
        """
        found = _first_object(text)
        if found is None and _REFUSAL.search(text.replace("\u2019", "'")[:300]):
            raise RefusalError("declined in words")
        if found is None:
            raise MalformedError("cut off at the token limit" if cut else "no JSON object")
        try:
            answer: Answer = self.model.model_validate(found).model_dump()
        except ValidationError as error:
            raise MalformedError(_first_problem(error)) from error
        if _REFUSAL.match(answer.get(CAPTION, "").replace("\u2019", "'")):
            raise RefusalError("declined in the caption")
        return answer


_CAPTION_TASK = (
    "One to three sentences: expression, gaze and head direction, hair, facial hair, "
    "accessories, light and picture quality."
)


def _first_object(text: str) -> dict[str, Any] | None:
    start = text.find("{")
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    return found


def _first_problem(error: ValidationError) -> str:
    """The key and the rule, never the value: the raw text is kept beside it."""
    detail = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'answer'}: {detail['msg']}"


def asked_attributes(names: Iterable[str]) -> tuple[str, ...]:
    """Return canonical names of the attributes to ask about, each once.

    Raises:
        UserError: a name that looks like a misspelt one of the registry, or is reserved.
    """
    return tuple(dict.fromkeys(_canonical(name) for name in names if name.strip()))


def _canonical(raw: str) -> str:
    name, _ = canonical_attribute(raw)
    near = difflib.get_close_matches(name, attributes(), n=1, cutoff=0.8)
    if name not in attributes() and near:
        raise UserError(f"unknown attribute {raw.strip()!r}", f"did you mean {near[0]!r}?")
    if not name or name == CAPTION:
        raise UserError(f"{raw.strip()!r} cannot be an attribute", "captions have --caption")
    return name


def labels_of(answer: Answer) -> dict[str, bool]:
    """Return the attributes an answer settles; unknown ones are left out."""
    return {
        name: state == "yes"
        for name, state in answer.items()
        if name != CAPTION and state in STATES[:2]
    }
