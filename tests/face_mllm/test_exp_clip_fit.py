"""Loss and training of the head against their formulas, on one process and on two."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional

# light modules only: every spawned process imports this file
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.config import ExpClipConfig
from face_mllm.experts.exp_clip.fit import batches, check_batch, fit
from face_mllm.experts.exp_clip.head import ExpClipHead
from face_mllm.experts.exp_clip.loss import contrast

TEACHER = {"kind": "text", "model": "embedded:smollm2"}


def config(**changes) -> ExpClipConfig:
    settings = {"data": ["d"], "out": "o", "clip": "c", "teacher": TEACHER, "batch_size": 8}
    return ExpClipConfig(
        **{**settings, "epochs": 3, "learning_rate": 0.1, "log_steps": 1, **changes}
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
