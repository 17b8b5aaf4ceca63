"""One-prefill likelihoods equal naive separate passes, whatever else is asked beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from face_mllm.scoring import LikelihoodScorer

QUESTIONS = [
    ("Is AU12 active?", ("yes", "no")),
    ("Which expression?", ("fear", "fearful", "happiness", "happy face")),
    ("How old?", ("3", "35", "35 years", "5")),
]


@pytest.fixture
def face():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8))


def naive(model, processor, image, question, choice):
    """One ordinary pass for one question and one choice."""
    branch, start = processor.branch_ids(question, choice)
    ids = torch.tensor([[*processor.prefix_ids(), *branch]])
    first = len(processor.prefix_ids()) + start
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=processor.pixels([image])).logits
    picked = logits[0, first - 1 : -1].log_softmax(-1).gather(1, ids[0, first:, None])
    return picked.sum().item()


@pytest.mark.parametrize(
    "tower,llm", [("resnet", "llama"), ("clip", "qwen"), ("siglip", "mistral")]
)
def test_scores_equal_separate_passes(make_model, face, tower, llm):
    model, processor = make_model(tower, llm)
    scores = LikelihoodScorer(model, processor).score(face, QUESTIONS)
    for (question, choices), row in zip(QUESTIONS, scores, strict=True):
        expected = [naive(model, processor, face, question, choice) for choice in choices]
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_scores_do_not_depend_on_company_order_or_row_length(make_model, face):
    model, processor = make_model()
    together = LikelihoodScorer(model, processor).score(face, QUESTIONS)
    alone = [LikelihoodScorer(model, processor).score(face, [q])[0] for q in QUESTIONS]
    split = LikelihoodScorer(model, processor, max_tokens=30).score(face, QUESTIONS)
    reverse = LikelihoodScorer(model, processor).score(face, QUESTIONS[::-1])[::-1]
    for rows in (alone, split, reverse):
        for one, other in zip(together, rows, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_features_are_the_mean_of_the_frozen_map(make_model, face):
    model, processor = make_model("resnet")
    features = LikelihoodScorer(model, processor).features([face, face], batch=1)
    with torch.no_grad():
        last = model.vision_tower(processor.pixels([face])).last_hidden_state
    np.testing.assert_allclose(features[0], last.mean((2, 3))[0].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(features[0], features[1])


def test_greedy_generation_with_cache_equals_full_passes(make_model, face):
    model, processor = make_model("clip", "llama")
    ids = processor.prompt_ids([("How old?", None)])
    pixels = processor.pixels([face])
    grown = list(ids)
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=torch.tensor([grown]), pixel_values=pixels).logits
            grown.append(int(logits[0, -1].argmax()))
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            pixel_values=pixels,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
        )
    assert out[0].tolist() == grown
