"""Every term of mask-FER against numbers worked out by hand, and gradients by differences."""

import math

import pytest
import torch
from torch.nn import functional

from face_mllm.experts.mask_fer.config import LossSettings
from face_mllm.experts.mask_fer.losses import (
    diversity_loss,
    draw_channels,
    grouped,
    separated_logits,
    separation_loss,
)
from face_mllm.experts.mask_fer.model import MaskFer, losses

# 7 channels, 3 classes: groups (0, 1), (2, 3), (4, 5); channel 6 belongs to none
X = torch.tensor([[1.0, 2.0, -1.0, -3.0, 0.5, 0.0, 99.0], [0.0, -1.0, 4.0, 1.0, -2.0, -5.0, 99.0]])


def test_groups_are_contiguous_and_the_rest_is_left_out():
    assert grouped(X, 3).shape == (2, 3, 2)
    assert grouped(X, 3)[0].tolist() == [[1, 2], [-1, -3], [0.5, 0]]
    assert separated_logits(X, 3).tolist() == [[2, -1, 0.5], [0, 4, -2]]


@pytest.mark.parametrize(
    "width, classes, channels, left", [(512, 7, 73, 1), (768, 7, 109, 5), (768, 8, 96, 0)]
)
def test_the_paper_s_group_sizes(width, classes, channels, left):
    x = torch.arange(width, dtype=torch.float)[None]
    groups = grouped(x, classes)
    assert groups.shape == (1, classes, channels)
    assert width - groups.numel() == left
    assert groups[0, 1, 0] == channels
    assert MaskFer(None, width, classes, "linear").channels == channels


def test_too_many_classes_are_refused():
    with pytest.raises(ValueError, match="7 channels cannot be dealt to 8"):
        grouped(X, 8)


def test_a_dropped_channel_is_zero_and_zero_competes():
    keep = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    # face 0: max(1, 0), max(0, -3), max(0.5, 0); face 1: max(0, 0), max(0, 1), max(-2, -5)
    assert separated_logits(X, 3, keep).tolist() == [[1, 0, 0.5], [0, 1, -2]]


def test_separation_in_closed_form():
    targets = torch.tensor([0, 2])
    first = math.log(math.exp(2) + math.exp(-1) + math.exp(0.5)) - 2
    second = math.log(math.exp(0) + math.exp(4) + math.exp(-2)) + 2
    found = separation_loss(X, targets, 3, None)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_diversity_in_closed_form_and_its_two_norms():
    total = 2 - 1 + 0.5 + 0 + 4 - 2  # group maxima of both faces
    assert diversity_loss(X, 3, "code").item() == pytest.approx(1 - total / (2 * 3 * 2))
    assert diversity_loss(X, 3, "paper").item() == pytest.approx(1 - total / (2 * 2))
    code, paper = diversity_loss(X, 3, "code"), diversity_loss(X, 3, "paper")
    assert (1 - paper).item() == pytest.approx(3 * (1 - code).item())


def test_the_drop_of_the_paper_is_10_of_73_once_for_the_batch():
    keep = draw_channels(7, 73, 0.137, torch.Generator().manual_seed(0))
    assert keep.shape == (1, 7, 73)
    assert (keep == 0).sum(-1).tolist() == [[10] * 7]
    assert len({tuple(group.tolist()) for group in keep[0]}) == 7  # each group its own
    again = draw_channels(7, 73, 0.137, torch.Generator().manual_seed(0))
    assert torch.equal(keep, again)
    assert not torch.equal(keep, draw_channels(7, 73, 0.137, torch.Generator().manual_seed(1)))
    each = draw_channels(7, 73, 0.137, torch.Generator().manual_seed(0), samples=4)
    assert (each == 0).sum(-1).unique().tolist() == [10]
    assert not torch.equal(each[0], each[1])
    assert draw_channels(3, 5, 0.0, torch.Generator()).min() == 1


def test_every_channel_is_dropped_alike():
    generator = torch.Generator().manual_seed(0)
    kept = draw_channels(2, 10, 0.3, generator, samples=4000).mean(0)
    assert (kept - 0.7).abs().max() < 0.04


def tiny(classes=3, width=7):
    torch.manual_seed(0)
    model = MaskFer(None, width, classes, "linear").double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, width, dtype=torch.double, generator=generator)
    keep = draw_channels(classes, width // classes, 0.34, generator).double()
    return model, x, torch.tensor([0, 1, 2, 1]), keep


def test_the_total_is_the_weighted_sum():
    model, x, targets, keep = tiny()
    made = losses(model, x, targets, keep, LossSettings())
    logits = x @ model.fc.weight.T + model.fc.bias
    classification = functional.cross_entropy(logits, targets)
    expected = (
        classification
        + 1.5 * separation_loss(x, targets, 3, keep)
        + 5 * diversity_loss(x, 3, "code")
    )
    assert made.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert set(made.numbers()) == {"total", "classification", "separation", "diversity"}
    alone = losses(model, x, targets, keep, LossSettings(separation=0, diversity=0))
    assert alone.total.item() == pytest.approx(classification.item(), rel=1e-12)


@pytest.mark.parametrize("norm", ["code", "paper"])
@pytest.mark.parametrize("dropped", [True, False])
def test_gradients_by_finite_differences(norm, dropped):
    """Of the total with respect to the mask's logits and the classifier, in fp64."""
    model, x, targets, keep = tiny()
    features, settings = x.clone(), LossSettings(div_norm=norm)
    generator = torch.Generator().manual_seed(2)
    mask = torch.randn(4, 7, dtype=torch.double, generator=generator, requires_grad=True)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, mask):
            masked = features * torch.sigmoid(mask)
            return losses(model, masked, targets, keep if dropped else None, settings).total

    def total(mask, weight, bias):
        changed = {"model.fc.weight": weight, "model.fc.bias": bias}
        return torch.func.functional_call(Step(), changed, mask)

    inputs = (
        mask,
        model.fc.weight.detach().clone().requires_grad_(),
        model.fc.bias.detach().clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(total, inputs, eps=1e-6, atol=1e-6)


def test_logits_from():
    model, x, _, _ = tiny()
    fc, separated = model.logits(x, "fc"), model.logits(x, "separated")
    assert torch.equal(fc, model.fc(x))
    assert torch.equal(separated, grouped(x, 3).amax(-1))
    torch.testing.assert_close(model.logits(x, "mean"), (fc + separated) / 2)
