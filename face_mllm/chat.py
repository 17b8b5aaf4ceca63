"""The product's face: load an artifact, ask it, score choices, describe a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.records import open_rgb
from face_mllm.artifact import Artifact, load_artifact
from face_mllm.hardware import for_precision
from face_mllm.scoring import LikelihoodScorer, generate_answer

Picture = Image.Image | str | Path


class FaceMLLM:
    """A trained artifact ready for questions.

    Example:
        >>> model = FaceMLLM.from_pretrained("runs/demo/stage3")
        >>> model.ask("photo.jpg", "Which expression?")
        'happiness'
    """

    def __init__(self, scorer: LikelihoodScorer, artifact: Artifact) -> None:
        self.scorer = scorer
        self.artifact = artifact

    @classmethod
    def from_pretrained(cls, folder: Path | str, precision: str = "auto") -> FaceMLLM:
        """Load an artifact folder.

        Args:
            folder: what ``face-mllm train`` wrote.
            precision: auto, bf16 or fp32.
        """
        chosen = for_precision(precision)
        model, processor, artifact = load_artifact(folder, chosen.torch_dtype)
        return cls(LikelihoodScorer(model.to(chosen.device), processor, chosen.autocast), artifact)

    def ask(
        self,
        image: Picture,
        question: str,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int = 96,
        streamer: Any = None,
    ) -> str:
        """Answer a question about a face in free words, greedily.

        Args:
            image: picture or path.
            question: any question.
            history: earlier (question, answer) turns about the same picture.
            max_new_tokens: longest answer.
            streamer: a transformers streamer that sees tokens as they come.
        """
        return generate_answer(
            self.scorer.model,
            self.scorer.processor,
            picture(image),
            [*history, (question, None)],
            max_new_tokens,
            self.scorer.autocast,
            streamer,
        )

    def score(self, image: Picture, question: str, choices: Sequence[str]) -> dict[str, float]:
        """Probability of each choice under the model, summing to one."""
        log_likelihoods = self.scorer.score(picture(image), [(question, choices)])[0]
        return dict(zip(choices, normalise(log_likelihoods).tolist(), strict=True))

    def describe(self, image: Picture) -> dict[str, Any]:
        """One row per face: expression probabilities, AUs, attributes, age, head pose.

        Returns:
            ``expression`` {class: probability}, ``action_units`` {AU: probability active},
            ``attributes`` {name: probability}, ``age`` years, ``head_pose`` degrees. A value is
            an estimate of this model, not a fact about a person.
        """
        from data_pipeline.questions import describe_questions

        questions = describe_questions()
        asked = [(q.question, q.choices) for q in questions]
        rows = self.scorer.score(picture(image), asked)
        out: dict[str, Any] = {}
        for question, row in zip(questions, rows, strict=True):
            _enter(out, question, normalise(row))
        return out


def _enter(out: dict[str, Any], question: Any, chances: np.ndarray) -> None:
    """Put one scored question into the description."""
    if question.values:
        value = round(float(np.dot(chances, question.values)), 1)
        if question.task == "age":
            out["age"] = value
        else:
            out.setdefault(question.task, {})[question.name] = value
    elif question.task == "expression":
        rounded = [round(float(chance), 4) for chance in chances]
        out["expression"] = dict(zip(question.choices, rounded, strict=True))
    else:
        group = {"action_unit": "action_units", "attribute": "attributes"}.get(
            question.task, question.task
        )
        out.setdefault(group, {})[question.name] = round(float(chances[0]), 4)


def normalise(log_likelihoods: np.ndarray) -> np.ndarray:
    """Softmax of the choices' log likelihoods."""
    shifted = np.exp(log_likelihoods - log_likelihoods.max())
    return shifted / shifted.sum()


def picture(image: Picture) -> Image.Image:
    """A picture from a path or an image."""
    return image if isinstance(image, Image.Image) else open_rgb(str(image), str(image))
