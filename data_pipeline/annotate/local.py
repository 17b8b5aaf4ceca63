"""Annotators on this machine: a Hugging Face vision-language model, or a model of this package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from PIL import Image

from data_pipeline.annotate.questions import CAPTION, CAPTION_QUESTION, Questions
from data_pipeline.annotate.reply import Reply, scaled
from data_pipeline.annotate.spec import ArtifactSpec, LocalSpec
from data_pipeline.labels.attributes import attribute
from face_mllm.errors import UserError
from face_mllm.progress import quiet_libraries

YES_NO = ("yes", "no")


class LocalModel:
    """A Hugging Face image-text-to-text model; greedy, so the same picture gives the same words.

    Raises:
        UserError: the folder or id is no such model.
    """

    workers = 1
    tries = 1

    def __init__(self, spec: LocalSpec, questions: Questions) -> None:
        self.spec = spec
        self.questions = questions
        self.batch = spec.batch
        self.model, self.processor = _load(spec)
        self.max_tokens = spec.max_tokens or 2 * questions.answer_tokens + 50

    def ask(self, pictures: Sequence[Image.Image]) -> list[Reply]:
        """Return one reply per picture."""
        import torch

        small = [scaled(picture, self.spec.max_side) for picture in pictures]
        inputs = self.processor.apply_chat_template(
            [self._conversation(picture) for picture in small],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_tokens
            )
        return [self._reply(row) for row in out[:, inputs["input_ids"].shape[1] :]]

    def close(self) -> None:
        """Let go of the weights: a second model may need the room."""
        del self.model

    def _conversation(self, picture: Image.Image) -> list[dict[str, Any]]:
        words = {"type": "text", "text": self.questions.prompt}
        return [{"role": "user", "content": [{"type": "image", "image": picture}, words]}]

    def _reply(self, row: Any) -> Reply:
        text = self.processor.decode(row, skip_special_tokens=True).strip()
        ends = self.model.generation_config.eos_token_id
        ended = bool(set(row.tolist()) & set(ends if isinstance(ends, list) else [ends]))
        return Reply(text, cut=not ended and len(row) >= self.max_tokens)


def _load(spec: LocalSpec) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from face_mllm.hardware import for_precision

    quiet_libraries()
    chosen = for_precision(spec.precision)
    try:
        processor = AutoProcessor.from_pretrained(spec.model)
        model = AutoModelForImageTextToText.from_pretrained(spec.model, dtype=chosen.torch_dtype)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"{spec.model}: not loaded as an image-text-to-text model ({first})",
            "give the folder or hub id of one, with its processor",
        ) from error
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # answers of a batch start in one column
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(chosen.device).eval(), processor


class OwnModel:
    """A model this package trained: attributes by the likelihood of yes and no, captions in words.

    Attributes it was taught are asked in the wording it was taught; those between ``1 - sure``
    and ``sure`` are unknown.

    Raises:
        UserError: the folder is no artifact.
    """

    workers = 1
    batch = 1
    tries = 1

    def __init__(self, spec: ArtifactSpec, questions: Questions) -> None:
        quiet_libraries()
        from face_mllm.chat import FaceMLLM

        self.sure = spec.sure
        self.max_side = spec.max_side
        self.questions = questions
        self.model = FaceMLLM.from_pretrained(spec.model, spec.precision)
        taught = {
            entry["name"]: entry["question"]
            for entry in self.model.questions
            if entry["task"] == "attribute" and tuple(entry["choices"]) == YES_NO
        }
        self.asked = [taught.get(n, attribute(n).question) for n in questions.attributes]

    def ask(self, pictures: Sequence[Image.Image]) -> list[Reply]:
        """Return one reply per picture."""
        return [Reply(json.dumps(self._answer(picture))) for picture in pictures]

    def close(self) -> None:
        """Let go of the weights: a second model may need the room."""
        del self.model

    def _answer(self, picture: Image.Image) -> dict[str, str]:
        from face_mllm.chat import normalise

        picture = scaled(picture, self.max_side)
        answer = {}
        if self.questions.caption:
            answer[CAPTION] = self.model.ask(picture, CAPTION_QUESTION)
        rows = self.model.scorer.score(picture, [(question, YES_NO) for question in self.asked])
        for name, row in zip(self.questions.attributes, rows, strict=True):
            answer[name] = self._state(float(normalise(row)[0]))
        return answer

    def _state(self, yes: float) -> str:
        if max(yes, 1 - yes) < self.sure:
            return "unknown"
        return "yes" if yes > 0.5 else "no"
