"""Late fusion and calibration against closed forms."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from face_mllm.errors import UserError
from face_mllm.experts.joined.fuse import words
from face_mllm.experts.joined.fusion import (
    Fusion,
    Group,
    Trial,
    choose,
    combine,
    fit,
    log_softmax,
    measure,
    read_fusion,
    spread,
    write_fusion,
)

LOGS = log_softmax(np.array([[0.3, -1.0, 2.0, 0.5], [1.5, 1.4, -0.2, -3.0]]))
THEIRS = log_softmax(np.array([[2.0, 0.1, -1.0, 0.0], [-1.0, 0.7, 0.3, 0.9]]))


def test_fused_is_the_normalised_weighted_geometric_mean():
    fused = np.exp(combine(LOGS, THEIRS, 0.3))
    mean = np.exp(LOGS) ** 0.7 * np.exp(THEIRS) ** 0.3
    np.testing.assert_allclose(fused, mean / mean.sum(-1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(combine(LOGS, THEIRS, 0.0), LOGS)
    np.testing.assert_allclose(combine(LOGS, THEIRS, 1.0), THEIRS, rtol=1e-12)


def test_a_class_the_expert_does_not_know_keeps_its_probability():
    theirs = THEIRS.copy()
    theirs[:, 2] = -np.inf
    fused = np.exp(combine(LOGS, theirs, 0.6))
    own = np.exp(LOGS)
    np.testing.assert_allclose(fused[:, 2], own[:, 2], rtol=1e-12)
    known = [0, 1, 3]
    mean = own[:, known] ** 0.4 * np.exp(theirs[:, known]) ** 0.6
    mean *= own[:, known].sum(-1, keepdims=True) / mean.sum(-1, keepdims=True)
    np.testing.assert_allclose(fused[:, known], mean, rtol=1e-12)


def test_an_experts_classes_are_laid_over_the_choices_by_name():
    logs = log_softmax(np.array([1.0, 2.0, 3.0]))
    laid = spread(logs, ("fear", "anger", "contempt"), ("anger", "sadness", "fear"))
    assert laid[1] == -np.inf
    np.testing.assert_allclose(np.exp(laid[[2, 0]]), np.exp([1, 2]) / np.exp([1, 2]).sum())


def test_temperature_is_the_analytic_one():
    """One margin d for all faces, right with rate a: softmax must say a, so T = d / logit(a)."""
    d, right, faces = 6.0, 80, 100
    mllm = np.tile([d, 0.0], (faces, 1))
    truth = np.array([0] * right + [1] * (faces - right))
    useless = np.full((faces, 2), np.log(0.5))
    found = fit([Group(("anger", "fear"), mllm, useless, truth)])
    assert found.mllm_temperature == pytest.approx(d / np.log(0.8 / 0.2), rel=1e-3)
    assert np.exp(found.calibrated(mllm))[0, 0] == pytest.approx(0.8, abs=1e-3)


def by_bins(chance, right, bins=15):
    """Expected calibration error as its paper writes it: share of a bin times its gap."""
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (chance >= low) & ((chance < high) | (high == 1))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - chance[inside].mean())
    return total


def test_calibration_error_before_and_after_is_the_papers_on_answers_too_sure_by_three():
    """Truth is drawn from the model's own chances, then its logs are tripled."""
    rng = np.random.default_rng(0)
    honest = log_softmax(rng.normal(size=(4000, 4)) * 1.5)
    truth = np.array([rng.choice(4, p=row) for row in np.exp(honest)])
    useless = np.full_like(honest, np.log(0.25))
    found = fit([Group(("neutral", "happiness", "anger", "fear"), 3 * honest, useless, truth)])
    assert found.mllm_temperature == pytest.approx(3, rel=0.1)
    sure = np.exp(log_softmax(3 * honest))
    right = sure.argmax(-1) == truth
    before, after = found.val["uncalibrated"]["mllm"]["ece"], found.val["mllm"]["ece"]
    assert before == pytest.approx(by_bins(sure.max(-1), right), rel=1e-9)
    calm = np.exp(found.calibrated(3 * honest)).max(-1)
    assert after == pytest.approx(by_bins(calm, right), rel=1e-9)
    assert before > 0.15
    assert after < 0.03
    assert found.val["fused"]["ece"] == pytest.approx(after, abs=1e-6)  # nothing to be had


def drawn(seed, strength, faces=300, classes=4):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, faces)
    one_hot = np.eye(classes)[truth]
    mllm, expert = (
        log_softmax(rng.normal(size=(faces, classes)) + s * one_hot) for s in (1.0, strength)
    )
    return Group(("neutral", "happiness", "anger", "fear"), mllm, expert, truth)


@pytest.mark.parametrize("strength", [-2.0, 0.0, 0.5, 1.0, 3.0])
def test_on_val_fusion_is_never_worse_than_the_mllm(strength):
    for seed in range(4):
        found = fit([drawn(seed, strength)]).val
        for metric in ("uar", "war"):
            assert found["fused"][metric] >= found["mllm"][metric]
        assert found["fused"]["nll"] <= found["mllm"]["nll"] + 1e-9


@pytest.mark.parametrize("faces", [5, 12])
def test_the_promise_holds_on_a_handful_of_faces_and_with_classes_the_expert_lacks(faces):
    """Weight 0 is among the candidates and is the MLLM's own calibrated answer."""
    for seed in range(12):
        one, two = drawn(seed, 1.5, faces), drawn(seed + 50, -0.5, faces)
        lacking = two.expert.copy()
        lacking[:, 1] = -np.inf
        groups = [one, dataclasses.replace(two, expert=lacking)]
        fusion = fit(groups)
        alone = measure(groups, [fusion.calibrated(g.mllm) for g in groups])
        fused = measure(groups, [fusion.fused(g.mllm, g.expert) for g in groups])
        assert fused["uar"] >= alone["uar"]
        assert fused["war"] >= alone["war"]
        assert fused["nll"] <= alone["nll"] + 1e-9
        plain = dataclasses.replace(fusion, weight=0.0, temperature=1.0)
        own = plain.fused(one.mllm, one.expert)
        np.testing.assert_allclose(own, plain.calibrated(one.mllm), atol=1e-12)


def test_a_misleading_expert_gets_no_weight_and_a_good_one_helps():
    bad, good = drawn(0, -2.0), drawn(0, 2.0)
    found = fit([bad])
    assert found.weight == 0
    assert (found.fused(bad.mllm, bad.expert).argmax(-1) == bad.mllm.argmax(-1)).all()
    helped = fit([good])
    assert helped.weight > 0.3
    unseen = drawn(9, 2.0)
    alone = measure([unseen], [unseen.mllm])["uar"]
    assert measure([unseen], [helped.fused(unseen.mllm, unseen.expert)])["uar"] > alone + 0.05


def test_an_expert_without_an_opinion_gets_no_weight():
    group = drawn(0, 1.0)
    silent = np.full_like(group.expert, np.log(0.25))
    assert fit([dataclasses.replace(group, expert=silent)]).weight == 0


def test_the_smallest_weight_about_as_good_as_the_best_is_taken():
    """A few faces more or less must not hand everything to the expert."""
    losses = {0.0: 0.50, 0.4: 0.36, 0.7: 0.33, 1.0: 0.32}
    noise = np.random.default_rng(0).normal(size=(4, 40)) * 0.1
    trials = [
        Trial(Fusion(w, 1.0, 1.0, 1.0), 0.9, 0.9, level + each - each.mean())
        for (w, level), each in zip(losses.items(), noise, strict=True)
    ]
    spread_of = (trials[2].losses - trials[3].losses).std() / np.sqrt(40)
    assert losses[0.7] - losses[1.0] < spread_of < losses[0.4] - losses[1.0]
    assert choose(trials).weight == 0.7
    worse = [*trials[:2], dataclasses.replace(trials[2], war=0.8), trials[3]]
    assert choose(worse).weight == 1.0


def test_questions_with_different_choices_share_one_weight():
    one, two = drawn(1, 2.0), drawn(2, 2.0)
    wider = Group(
        (*two.choices, "contempt"),
        np.hstack([two.mllm, np.full((300, 1), -9.0)]),
        np.hstack([two.expert, np.full((300, 1), -np.inf)]),
        two.truth,
    )
    found = fit([one, wider])
    assert found.val["faces"] == 600
    assert found.weight > 0
    assert np.isfinite(found.fused(wider.mllm, wider.expert)).all()


def test_a_split_without_a_mistake_is_said_to_calibrate_nothing():
    easy = drawn(0, 1.0, 5)
    right = log_softmax(np.eye(4)[easy.truth])
    found = fit([dataclasses.replace(easy, mllm=right, expert=right)])
    assert found.unsettled
    assert "too few or too easy" in words(found)
    assert "too few" not in words(fit([drawn(0, 1.0)]))


def test_nothing_in_common_is_said(tmp_path):
    group = drawn(0, 1.0)
    with pytest.raises(UserError, match="both name"):
        fit([Group(group.choices, group.mllm, np.full_like(group.mllm, -np.inf), group.truth)])
    assert read_fusion(tmp_path) is None
    (tmp_path / "fusion.json").write_text('{"weight": 1')
    with pytest.raises(UserError, match="damaged"):
        read_fusion(tmp_path)


def test_what_was_fitted_comes_back_from_the_file(tmp_path):
    found = fit([drawn(3, 1.5)], "abc")
    write_fusion(tmp_path, found)
    again = read_fusion(tmp_path)
    assert isinstance(again, Fusion)
    assert again == found
    assert json.loads((tmp_path / "fusion.json").read_text())["data_fingerprint"] == "abc"
