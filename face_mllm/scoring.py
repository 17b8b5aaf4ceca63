"""Likelihood of closed answers: every question of a face and all its options in one prefill."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from face_mllm.experts.joined.fusion import Fusion, read_fusion
from face_mllm.experts.joined.verdict import told
from face_mllm.hardware import for_precision
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.model.vision import pooled_features
from face_mllm.tree import TreeRow, collate_trees

Question = tuple[str, Sequence[str]]


class LikelihoodScorer:
    """Scores answer choices by ``sum log p(choice tokens, end of turn | face, question)``.

    One face is one forward pass: all questions and options are branches of one tree row, shared
    beginnings computed once. A face never shares a batch with another, so no score depends on
    batch makeup.

    Args:
        model: composed model in eval mode.
        processor: its processor.
        autocast: run in bf16 autocast.
        max_tokens: longest tree row; more questions are split over several rows.
    """

    def __init__(
        self,
        model: FaceMLLMForConditionalGeneration,
        processor: FaceProcessor,
        autocast: bool = False,
        max_tokens: int = 512,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.autocast = autocast
        self.max_tokens = max_tokens
        self.fusion: Fusion | None = None  # with the expert of the processor

    @classmethod
    def from_artifact(cls, folder: Path | str, precision: str = "auto") -> LikelihoodScorer:
        """Load an artifact; dtype by capability of this machine."""
        from face_mllm.artifact import load_artifact

        chosen = for_precision(precision)
        model, processor, _ = load_artifact(folder, chosen.torch_dtype)
        scorer = cls(model.to(chosen.device), processor, chosen.autocast)
        scorer.fusion = read_fusion(folder)
        return scorer

    def score(self, image: Image.Image, questions: Sequence[Question]) -> list[np.ndarray]:
        """Natural-log likelihood of each choice, one array per question.

        Args:
            image: upright RGB face.
            questions: (question, choices) pairs.
        """
        pixels = self.processor.pixels([image]).to(self.model.device)
        given, (words,) = self.processor.expert_view([image])
        seen = {"pixel_values": pixels, **given}
        questions = [(told(words, question), choices) for question, choices in questions]
        scores = [np.zeros(len(choices)) for _, choices in questions]
        for row, slots in self._rows(questions):
            log_likelihoods = self._run(row, seen)
            for (number, choice), value in zip(slots, log_likelihoods, strict=True):
                scores[number][choice] = value
        return scores

    def features(self, images: Sequence[Image.Image], batch: int = 32) -> np.ndarray:
        """Pooled frozen vision features [N, D], float32, for probes and experts."""
        pooled = []
        for start in range(0, len(images), batch):
            pixels = self.processor.pixels(images[start : start + batch]).to(self.model.device)
            with torch.no_grad():
                layer = self.model.config.vision_layer
                pooled.append(pooled_features(self.model.vision_tower, pixels, layer).cpu())
        return torch.cat(pooled).float().numpy()

    def generate(self, image: Image.Image, question: str, max_new_tokens: int = 64) -> str:
        """Greedy free-form answer."""
        return generate_answer(
            self.model, self.processor, image, [(question, None)], max_new_tokens, self.autocast
        )

    def _rows(self, questions: Sequence[Question]) -> list[tuple[TreeRow, list[tuple[int, int]]]]:
        """Pack questions into tree rows; slots say which (question, choice) each group is."""
        rows: list[tuple[TreeRow, list[tuple[int, int]]]] = []
        row, root = self.processor.open_row()
        slots: list[tuple[int, int]] = []
        for number, (question, choices) in enumerate(questions):
            if slots and len(row.tree) > self.max_tokens:
                rows.append((row, slots))
                (row, root), slots = self.processor.open_row(), []
            for choice, text in enumerate(choices):
                tokens, start = self.processor.branch_ids(question, text)
                row.add_branch(root, tokens, start, group=len(slots))
                slots.append((number, choice))
        return [*rows, (row, slots)] if slots else rows

    def _run(self, row: TreeRow, seen: dict[str, torch.Tensor]) -> np.ndarray:
        """Sum of answer-token log probabilities per group of one tree row."""
        device = self.model.device
        batch = {**collate_trees([row], self.processor.pad_id), **seen}
        batch = {key: value.to(device) for key, value in batch.items()}
        targets = batch.pop("label_targets")
        batch.pop("label_weights")
        with torch.no_grad(), autocast(self.autocast, device.type):
            logits = self.model(**batch).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        picked = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu().numpy()
        return np.bincount(np.asarray(row.groups), weights=picked)


def autocast(enabled: bool, device: str) -> torch.autocast | nullcontext:
    """bf16 autocast, or nothing."""
    return torch.autocast(device, torch.bfloat16) if enabled else nullcontext()


def generate_answer(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    image: Image.Image,
    turns: Sequence[tuple[str, str | None]],
    max_new_tokens: int,
    use_autocast: bool,
    streamer: object | None = None,
) -> str:
    """Greedy answer to the last turn of a conversation about one face."""
    given, (words,) = processor.expert_view([image])
    turns = [(told(words, turns[0][0]), turns[0][1]), *turns[1:]]
    ids = torch.tensor([processor.prompt_ids(turns)], device=model.device)
    pixels = processor.pixels([image]).to(model.device)
    with torch.no_grad(), autocast(use_autocast, model.device.type):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            **{name: value.to(model.device) for name, value in given.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
        )
    return processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
