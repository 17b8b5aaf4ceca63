"""Stand-ins for the tests of eval: a small dataset, and scorers whose answers are known."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipeline.labels.expressions import BASIC7
from data_pipeline.questions import QuestionSet, closed_questions
from data_pipeline.records import FaceRecord, write_dataset

HOLDOUT = ("smiling",)
COUNTS = {"train": 60, "val": 24, "test": 30}


def picture(number: int) -> bytes:
    """A picture whose colour is the face's number."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (number // 256, number % 256, 7)).save(out, "PNG")
    return out.getvalue()


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red * 256 + green


def labels_of(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    labels: dict[str, Any] = {
        "expression": BASIC7[int(rng.choice(7, p=[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]))],
        "action_units": {"AU12": float(rng.integers(0, 6)), "AU4": bool(rng.random() < 0.3)},
        "attributes": {"smiling": bool(rng.random() < 0.5), "beard": bool(rng.random() < 0.3)},
        "age": float(rng.integers(18, 80)),
        "head_pose": {axis: float(rng.normal(0, 20)) for axis in ("yaw", "pitch", "roll")},
    }
    if number % 5 == 0:
        del labels["expression"]  # unknown
    if number % 7 == 0:
        del labels["attributes"]["beard"]
    return labels


def records(counts: dict[str, int] = COUNTS) -> list[FaceRecord]:
    made, number = [], 0
    for split, count in counts.items():
        for _ in range(count):
            made.append(
                FaceRecord(
                    id=f"double_{number:04d}",
                    source="double",
                    split=split,
                    subject=f"{split}_{number // 2}",
                    image=picture(number),
                    labels=labels_of(number),
                )
            )
            number += 1
    return made


def build(
    out: Path,
    order: Callable[[list[FaceRecord]], list[FaceRecord]] = list,
    counts: dict[str, int] = COUNTS,
) -> Path:
    with write_dataset(out) as writer:
        for record in order(records(counts)):
            writer.add(record)
    manifest = {
        "question_set": QuestionSet.load("compact").model_dump(mode="json"),
        "holdout_attributes": list(HOLDOUT),
        "sources": [{"source": "double", "protocol": "double/all"}],
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def nearest(values: Sequence[float], truth: float) -> int:
    return int(np.argmin(np.abs(np.asarray(values) - truth)))


class Features:
    """Vision features in which every label is linear."""

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([self._vector(number_of(image)) for image in images])

    def _vector(self, number: int) -> np.ndarray:
        labels, rng = labels_of(number), np.random.default_rng(number + 10_000)
        known = np.zeros(16)
        if "expression" in labels:
            known[BASIC7.index(labels["expression"])] = 1
        known[7] = labels["action_units"]["AU12"] >= 2
        known[8] = labels["action_units"]["AU4"]
        known[9] = labels["attributes"]["smiling"]
        known[10] = labels["attributes"].get("beard", False)
        known[11] = labels["age"] / 50
        known[12:15] = np.array(list(labels["head_pose"].values())) / 30
        return known + rng.normal(0, 1e-3, 16)


class Knowing(Features):
    """Knows every truth: certain of it, or of the grid point nearest to it."""

    def score(
        self, image: Image.Image, questions: list[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        asked = {q.question: q for q in self._closed(image)}
        return [self._logs(asked[question]) for question, _ in questions]

    def generate(self, image: Image.Image, question: str) -> str:
        asked = {q.question: q for q in self._closed(image)}[question]
        at = nearest(asked.values, asked.truth) if asked.values else int(asked.truth)
        return f"It is {asked.choices[at]}."

    def _closed(self, image: Image.Image) -> list[Any]:
        return closed_questions(labels_of(number_of(image)), "compact", HOLDOUT)

    def _logs(self, asked: Any) -> np.ndarray:
        at = nearest(asked.values, asked.truth) if asked.values else int(asked.truth)
        logs = np.full(len(asked.choices), -80.0)
        logs[at] = -0.01
        return logs


class Constant(Features):
    """Says the same whatever it sees: the answers it is given, by question."""

    def __init__(self, answers: dict[str, int]) -> None:
        self.answers = answers

    def score(
        self, image: Image.Image, questions: list[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        made = [np.full(len(choices), -80.0) for _, choices in questions]
        for logs, (question, _) in zip(made, questions, strict=True):
            logs[self.answers.get(question, 0)] = -0.01
        return made


class Noisy(Features):
    """Wrong now and then, the same way for the same face and question."""

    def score(
        self, image: Image.Image, questions: list[tuple[str, Sequence[str]]]
    ) -> list[np.ndarray]:
        made = []
        for question, choices in questions:
            seed = [number_of(image), *question.encode()]
            made.append(np.random.default_rng(seed).normal(-3, 1, len(choices)))
        return made


class Clip:
    """A CLIP that sees the truth of `smiling` and nothing else."""

    def image_embeddings(self, images: Sequence[Image.Image]) -> torch.Tensor:
        seen = [labels_of(number_of(image))["attributes"]["smiling"] for image in images]
        return torch.tensor(seen, dtype=torch.float32)[:, None]

    def probabilities(self, image: torch.Tensor, prompts: Sequence[Sequence[str]]) -> np.ndarray:
        if len(prompts) == 2 and "smiling" in prompts[0][0]:
            return torch.cat([image, 1 - image], dim=1).numpy()
        return np.full((len(image), len(prompts)), 1 / len(prompts))
