"""The product's face: load an artifact, ask it, score choices, describe a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.records import open_rgb
from eval.tasks import is_binary
from face_mllm.artifact import QUESTIONS_FILE
from face_mllm.errors import UserError
from face_mllm.experts.joined.fusion import spread
from face_mllm.photographs import FacePicture, face_pictures, policy_for
from face_mllm.scoring import LikelihoodScorer, generate_answer

Picture = Image.Image | str | Path
GROUPS = {"action_unit": "action_units", "attribute": "attributes"}


class FaceMLLM:
    """A trained artifact ready for questions.

    Example:
        >>> model = FaceMLLM.from_pretrained("runs/demo/stage3")
        >>> model.ask("photo.jpg", "Which expression?")
        'happiness'
    """

    def __init__(self, scorer: LikelihoodScorer, folder: Path) -> None:
        self.scorer = scorer
        self.folder = folder
        path = folder / QUESTIONS_FILE
        self.questions: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    @classmethod
    def from_pretrained(cls, folder: Path | str, precision: str = "auto") -> FaceMLLM:
        """Load an artifact folder.

        Args:
            folder: what ``face-mllm train`` wrote.
            precision: auto, bf16 or fp32.
        """
        return cls(LikelihoodScorer.from_artifact(folder, precision), Path(folder))

    def faces(self, photograph: Picture, how: str = "auto") -> list[FacePicture]:
        """The faces in a photograph, cut as the training faces were, the largest first.

        Args:
            photograph: picture or path.
            how: ``auto``, ``none`` or ``detect`` (see :func:`face_mllm.photographs.policy_for`).

        Returns:
            Pictures to :meth:`ask`, :meth:`score` or :meth:`describe`, each with its box.
        """
        policy = policy_for(self.folder, how)
        return face_pictures(picture(photograph), str(photograph), policy)

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
        """One row per face: every closed question the model was taught, asked once.

        Returns:
            ``expression`` {class: probability}, ``action_units`` {AU: probability active},
            ``attributes`` {name: probability}, ``age`` years, ``head_pose`` degrees. With late
            fusion inside, ``expert`` holds what :meth:`second_opinion` says of the expression.
            A value is an estimate of this model, not a fact about a person.
        """
        if not self.questions:
            raise UserError(
                f"{self.folder}: holds no {QUESTIONS_FILE}",
                "train on a dataset built with `face-mllm data build`",
            )
        asked = [(entry["question"], entry["choices"]) for entry in self.questions]
        image = picture(image)
        rows = self.scorer.score(image, asked)
        out: dict[str, Any] = {}
        for entry, row in zip(self.questions, rows, strict=True):
            _enter(out, entry, normalise(row))
            if entry["task"] == "expression" and entry["name"] == "all" and self.scorer.fusion:
                out["expert"] = self.second_opinion(image, entry["choices"], row)
        return out

    def second_opinion(
        self, image: Image.Image, choices: Sequence[str], mllm: np.ndarray
    ) -> dict[str, Any]:
        """The expert's view of an expression beside the model's, and both fused.

        Args:
            image: the face.
            choices: expressions asked for.
            mllm: the model's log-likelihoods of them.

        Returns:
            ``expression`` {class: the expert's probability}, ``answer`` the likeliest class by
            late fusion, ``probability`` of it, calibrated on the val split, and ``disagrees``:
            whether the expert and the model, each alone, would answer differently.
        """
        fusion, expert = self.scorer.fusion, self.scorer.processor.expert
        assert fusion is not None
        logs = expert.log_probabilities([image])[0].double().numpy()
        theirs = spread(logs, expert.classes, choices)
        fused = np.exp(fusion.fused(np.asarray(mllm), theirs))
        known = [(word, p) for word, p in zip(choices, np.exp(theirs), strict=True) if p > 0]
        best = int(fused.argmax())
        return {
            "expression": {word: round(float(chance), 4) for word, chance in known},
            "answer": choices[best],
            "probability": round(float(fused[best]), 4),
            "disagrees": len(known) > 1 and bool(theirs.argmax() != np.asarray(mllm).argmax()),
        }


def _enter(out: dict[str, Any], entry: dict[str, Any], chances: np.ndarray) -> None:
    """Put one scored question into the description."""
    task = GROUPS.get(entry["task"], entry["task"])
    if entry["values"]:
        answer: Any = round(float(np.dot(chances, entry["values"])), 1)
    elif is_binary(entry["choices"]):  # "yes" or "no", "glasses" or "no"
        answer = round(float(chances[0]), 4)
    else:
        rounded = [round(float(chance), 4) for chance in chances]
        answer = dict(zip(entry["choices"], rounded, strict=True))
    if entry["name"] == "all":
        out[task] = answer
    else:
        out.setdefault(task, {})[entry["name"]] = answer


def normalise(log_likelihoods: np.ndarray) -> np.ndarray:
    """Softmax of the choices' log likelihoods."""
    shifted = np.exp(log_likelihoods - log_likelihoods.max())
    return shifted / shifted.sum()


def picture(image: Picture) -> Image.Image:
    """A picture from a path or an image."""
    return image if isinstance(image, Image.Image) else open_rgb(str(image), str(image))
