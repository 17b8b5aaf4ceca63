"""Head, loss, prompts and zero-shot arithmetic against their formulas."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, multiprocessing
from torch.nn import functional

from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.head import HEAD_FILE, WEIGHT, ExpClipHead, load_head
from face_mllm.experts.exp_clip.loss import contrast
from face_mllm.experts.exp_clip.prompts import CLASSES, PROMPT_TYPES, prompts
from face_mllm.experts.exp_clip.train import batches, check_batch, fit
from face_mllm.experts.exp_clip.zero_shot import (
    class_logits,
    projections,
    sample_frames,
    zero_shot,
)

TEACHER = {"kind": "text", "model": "embedded:smollm2"}


def config(**changes) -> ExpClipConfig:
    settings = {"data": ["d"], "out": "o", "clip": "c", "teacher": TEACHER, "batch_size": 8}
    return ExpClipConfig(
        **{**settings, "epochs": 3, "learning_rate": 0.1, "log_steps": 1, **changes}
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
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Path("x")))
    for name, word in [
        ("other.pth", "no matrix"),
        ("text.pth", "not a readable"),
        ("evil.pth", "not a readable"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(UserError, match=word):
            load_head(tmp_path / name)


# --- loss


def test_loss_is_the_symmetric_formula():
    z, t, scale = random(5, 7, seed=1), random(5, 7, seed=2), 20.0
    total = 0.0
    unit = [functional.normalize(each.double(), dim=-1) for each in (z, t)]
    for a, b in (unit, unit[::-1]):
        for i in range(5):
            logits = [scale * float(a[i] @ b[j]) for j in range(5)]
            total += math.log(sum(math.exp(x) for x in logits)) - logits[i]
    assert contrast(z, t, scale).loss.item() == pytest.approx(total / 10, rel=1e-5)
    assert contrast(t, t, 100.0).top1 == 1.0
    assert contrast(3 * z, 5 * t, scale).loss == pytest.approx(contrast(z, t, scale).loss.item())


def test_gradient_equals_finite_differences():
    z, t = random(4, 3, seed=3).double().requires_grad_(), random(4, 3, seed=4).double()
    assert torch.autograd.gradcheck(lambda rows: contrast(rows, t, 10.0).loss, (z,))


def test_untrained_loss_is_near_chance():
    head = ExpClipHead(64, 256, seed=0)
    found = contrast(head(random(512, 64)), random(512, 256, seed=1), 1.0)
    assert found.loss.item() == pytest.approx(math.log(512), abs=0.05)


# --- several processes


def _process(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{processes}", rank=rank, world_size=processes
    )
    fitted = fit(random(40, 6), random(40, 9, seed=1), 20.0, config())
    torch.save((fitted.curve, fitted.head.mlp.weight), f"{folder}/{processes}-{rank}.pt")
    distributed.destroy_process_group()


def test_losses_and_weights_are_equal_on_one_and_two_processes(tmp_path):
    multiprocessing.spawn(_process, (2, str(tmp_path)), nprocs=2)
    alone = fit(random(40, 6), random(40, 9, seed=1), 20.0, config())
    for rank in range(2):
        curve, weight = torch.load(tmp_path / f"2-{rank}.pt")
        assert len(curve) == len(alone.curve) == 15
        for mine, other in zip(alone.curve, curve, strict=True):
            assert other["loss"] == pytest.approx(mine["loss"], rel=1e-5)
            assert other["top1"] == pytest.approx(mine["top1"])
        assert torch.allclose(weight, alone.head.mlp.weight, atol=1e-6)


# --- training


def test_fit_learns_a_linear_teacher_and_repeats_itself():
    student = random(64, 12)
    target = student @ random(12, 20, seed=5)
    runs = [fit(student, target, 20.0, config(epochs=30, learning_rate=0.05)) for _ in range(2)]
    assert runs[0].curve == runs[1].curve
    assert runs[0].curve[-1]["loss"] < 0.3 * runs[0].curve[0]["loss"]
    assert runs[0].faces_seen == 30 * 64


def test_first_step_is_sgd_with_decay():
    student, target = random(8, 4), random(8, 5, seed=1)
    settings = config(epochs=1, batch_size=8, weight_decay=0.1)
    head = ExpClipHead(4, 5, settings.seed)
    contrast(head(student), target, 10.0).loss.backward()
    wanted = head.mlp.weight - 0.1 * (head.mlp.weight.grad + 0.1 * head.mlp.weight)
    assert torch.allclose(fit(student, target, 10.0, settings).head.mlp.weight, wanted, atol=1e-6)


def test_batches_drop_the_odd_end_and_shuffle_each_epoch():
    epochs = list(batches(20, config(epochs=2)))
    assert [len(rows) for rows in epochs] == [8] * 4
    assert len(set(torch.cat(epochs[:2]).tolist())) == 16
    assert not torch.equal(epochs[0], epochs[2])
    with pytest.raises(UserError, match="fewer than batch_size"):
        check_batch(config(), 7)


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
