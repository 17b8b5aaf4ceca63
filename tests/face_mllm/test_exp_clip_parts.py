"""Head, prompts and zero-shot arithmetic against their formulas."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.head import HEAD_FILE, WEIGHT, ExpClipHead, load_head
from face_mllm.experts.exp_clip.prompts import CLASSES, PROMPT_TYPES, prompts
from face_mllm.experts.exp_clip.zero_shot import (
    class_logits,
    projections,
    sample_frames,
    zero_shot,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- head


def test_head_is_one_matrix_of_the_published_size_and_the_seed_decides_it():
    head = ExpClipHead(512, 4096, seed=1)
    assert [(name, tuple(p.shape)) for name, p in head.named_parameters()] == [
        (WEIGHT, (4096, 512))
    ]
    assert torch.equal(head.mlp.weight, ExpClipHead(512, 4096, seed=1).mlp.weight)
    before = torch.get_rng_state()
    ExpClipHead(4, 4, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(head(2 * random(3, 512)), 2 * head(random(3, 512)))  # no bias, linear


@pytest.mark.parametrize(
    "state",
    [
        {WEIGHT: random(6, 4)},
        {"module." + WEIGHT: random(6, 4)},
        {"epoch": 5, "state_dict": {"logit_scale": torch.tensor(1.0), WEIGHT: random(6, 4).half()}},
    ],
)
def test_released_checkpoints_load(state, tmp_path):
    path = tmp_path / "ExpCLIP_B32.pth"
    torch.save(state, path)
    head = load_head(path)
    assert (head.clip_width, head.teacher_width) == (4, 6)
    assert torch.allclose(head.mlp.weight, random(6, 4), atol=2e-3)


def test_our_folder_loads_and_what_is_no_checkpoint_says_so(tmp_path):
    save_file({WEIGHT: random(6, 4)}, tmp_path / HEAD_FILE)
    assert torch.equal(load_head(tmp_path).mlp.weight, random(6, 4))
    torch.save({"other": random(2, 2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Path("x"), protocol=2))
    for name, word in [
        ("other.pth", "no matrix"),
        ("text.pth", "not a readable"),
        ("evil.pth", "not a readable"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(UserError, match=word):
            load_head(tmp_path / name)


# --- prompts


def test_prompts_are_those_published():
    assert prompts(1, "anger") == ["anger."]
    assert prompts(2, "neutral") == ["an expression of neutral."]
    assert prompts(3, "fear") == ["a photo of a face with an expression of fear."]
    assert [len(prompts(kind, "disgust")) for kind in PROMPT_TYPES] == [1, 1, 1, 5, 10]
    assert prompts(5, "fear")[9] == "a clean photo showcasing a person's fearful expression."
    assert prompts(5, "happiness")[5] == "a photo of a face exuding happiness."
    assert prompts(5, "happiness")[9] == "a clean photo showcasing a person's happiness."
    assert prompts(4, "sadness")[1:3] == [
        "a cropped photo emphasizing a face expressing sadness.",
        "a photo exuding sadness in a person.",
    ]
    assert prompts(5, "neutral")[7] == "a good photo capturing someone's neutral state."
    for name in CLASSES:
        assert len(set(prompts(5, name))) == 10
        assert prompts(5, name)[:5] == prompts(4, name)
    every = [text for kind in PROMPT_TYPES for name in CLASSES for text in prompts(kind, name)]
    published = "a3a7be076977a3df05e834c09bfdd98506a655ab90f74ed93ba6985e291d5926"
    assert hashlib.sha256("\n".join(every).encode()).hexdigest() == published  # models/Text.py
    for bad in [(6, "anger"), (1, "joy")]:
        with pytest.raises(UserError):
            prompts(*bad)


# --- zero-shot


def test_ensembles_average_logits_or_embeddings():
    image, texts = random(3, 6), [random(2, 6, seed=1), random(4, 6, seed=2)]
    cosine = functional.cosine_similarity
    logits, embeddings = (class_logits(image, texts, 10.0, how) for how in ("logits", "embeddings"))
    for face in range(3):
        for group in range(2):
            each = [10 * cosine(image[face], text, 0) for text in texts[group]]
            assert logits[face, group] == pytest.approx(float(sum(each) / len(each)), rel=1e-4)
            mean = functional.normalize(texts[group], dim=-1).mean(0)
            wanted = 10 * float(cosine(image[face], mean, 0))
            assert embeddings[face, group] == pytest.approx(wanted, rel=1e-4)


def test_one_prompt_a_class_makes_both_ensembles_equal():
    image, texts = random(3, 6), [random(1, 6, seed=1), random(1, 6, seed=2)]
    pair = [class_logits(image, texts, 10.0, how) for how in ("logits", "embeddings")]
    assert torch.allclose(*pair, atol=1e-5)


def test_controls_are_plain_clip_and_an_untrained_head():
    head = ExpClipHead(6, 9, seed=7)
    image, texts = random(4, 6), [random(2, 6, seed=1), random(2, 6, seed=2)]
    given = projections(head, seed=0)
    found = {name: zero_shot(each, image, texts, 10.0) for name, each in given.items()}
    assert list(found) == ["exp_clip", "clip", "clip_upsampled"]
    assert torch.allclose(found["clip"], class_logits(image, texts, 10.0))
    assert not torch.allclose(found["exp_clip"], found["clip_upsampled"])
    same = projections(head, seed=7)["clip_upsampled"]
    assert torch.allclose(zero_shot(same, image, texts, 10.0), found["exp_clip"])


def test_a_clip_is_the_mean_of_its_projected_frames_whatever_their_length():
    head, texts = ExpClipHead(6, 9, seed=7), [random(1, 6, seed=1), random(1, 6, seed=2)]
    clips = random(2, 3, 6)
    clips[0] *= torch.tensor([1.0, 5.0, 1.0])[:, None]  # lengths count: frames are not normalised
    clips[1, 2] = float("nan")  # a clip of two frames
    means = torch.stack([head(clips[0]).mean(0), head(clips[1, :2]).mean(0)])
    wanted = class_logits(means, [head(text) for text in texts], 10.0)
    assert torch.allclose(zero_shot(head, clips, texts, 10.0), wanted, atol=1e-5)


def test_frames_are_the_middles_of_equal_stretches():
    assert sample_frames(32) == list(range(1, 32, 2))
    assert sample_frames(100)[0] == 3
    assert sample_frames(100)[-1] == 96
    assert sample_frames(5) == [0, 1, 2, 3, 4]
    assert sample_frames(16, repeat_first=True) == [0]
    assert len(set(sample_frames(17))) == 16
