"""The five prompt types of Exp-CLIP, worded as published with it (zengqunzhao/Exp-CLIP, MIT)."""

from __future__ import annotations

from collections.abc import Sequence

from face_mllm.errors import UserError

CLASSES: tuple[str, ...] = (
    "happiness",
    "sadness",
    "neutral",
    "anger",
    "surprise",
    "disgust",
    "fear",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)
"""The paper's order: the first 7 for most sets, 8 for AffectNet-8 and FERPlus, 11 for MAFW."""

CLASS_COUNTS = (7, 8, 11)

PROMPT_TYPES = (1, 2, 3, 4, 5)

_WORD = "{c}."
_EXPRESSION = "an expression of {c}."
_FACE = "a photo of a face with an expression of {c}."
_CROPPED = "a cropped photo emphasizing a face expressing {c}."
_FIVE = (
    _EXPRESSION,
    _FACE,
    "a photo radiating {c} in a person.",
    "a photo showing someone immersed in {c}.",
    "a photo capturing {c} within an individual.",
)
_TEN = (
    *_FIVE,
    "a photo of a face displaying {c}.",
    "a photo of a person embodying {c}.",
    "a good photo capturing someone's {c}.",
    _CROPPED,
    "a clean photo showcasing a person's {a} expression.",
)
_CLEAN_NOUN = "a clean photo showcasing a person's {c}."
# class -> place among the ten -> its own wording
_OWN: dict[str, dict[int, str]] = {
    "happiness": {5: "a photo of a face exuding {c}.", 9: _CLEAN_NOUN},
    "sadness": {1: _CROPPED, 2: "a photo exuding {c} in a person.", 8: _FACE, 9: _CLEAN_NOUN},
    "neutral": {7: "a good photo capturing someone's {c} state."},
}
_ADJECTIVES = {
    "neutral": "neutral",
    "anger": "angry",
    "surprise": "surprised",
    "disgust": "disgusted",
    "fear": "fearful",
    "contempt": "contemptuous",
    "anxiety": "anxious",
    "helplessness": "helpless",
    "disappointment": "disappointed",
}


def prompts(prompt_type: int, name: str) -> list[str]:
    """The wordings of one class under one prompt type.

    Args:
        prompt_type: 1 the bare name, 2 and 3 one sentence, 4 five of them, 5 ten.
        name: one of :data:`CLASSES`.

    Raises:
        UserError: another prompt type or class.
    """
    if prompt_type not in PROMPT_TYPES:
        raise UserError(f"prompt type {prompt_type}", "choose from 1, 2, 3, 4, 5")
    if name not in CLASSES:
        raise UserError(f"no prompts for class {name!r}", f"known: {', '.join(CLASSES)}")
    own = _OWN.get(name, {})
    ensemble = [own.get(place, text) for place, text in enumerate(_TEN)]
    chosen: Sequence[str] = {
        1: (_WORD,),
        2: (_EXPRESSION,),
        3: (_FACE,),
        4: ensemble[:5],
        5: ensemble,
    }[prompt_type]
    return [text.format(c=name, a=_ADJECTIVES.get(name, name)) for text in chosen]
