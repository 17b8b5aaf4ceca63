"""Metrics against scikit-learn and by hand; intervals against closed forms."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from eval import metrics
from eval.results import class_metric


def counts_of(truth, guess, classes):
    one = np.zeros(len(truth), dtype=np.int64)
    truth, guess = np.asarray(truth, float), np.asarray(guess, float)
    return metrics.confusion_by_subject(truth, guess, classes, one, 1)[0]


@pytest.mark.parametrize("seed", range(5))
def test_class_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(0, 6, 200), rng.integers(0, 7, 200)  # class 6 is never true
    counts = counts_of(truth, guess, 8)  # class 7 never occurs
    recall = sk.recall_score(truth, guess, labels=range(6), average=None)
    assert metrics.recalls(counts)[:6] == pytest.approx(recall)
    assert metrics.uar(counts) == pytest.approx(recall.mean())
    assert metrics.war(counts) == pytest.approx(sk.accuracy_score(truth, guess))
    assert metrics.f1_macro(counts) == pytest.approx(sk.f1_score(truth, guess, average="macro"))


@pytest.mark.parametrize("seed", range(5))
def test_yes_no_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.random(100) < 0.3, rng.random(100) < 0.4
    counts = counts_of(~truth, ~guess, 2)  # choices (yes, no): index 0 is yes
    yes_no = ("yes", "no")
    for name, reference in (
        ("f1", sk.f1_score(truth, guess)),
        ("balanced_accuracy", sk.balanced_accuracy_score(truth, guess)),
        ("accuracy", sk.accuracy_score(truth, guess)),
    ):
        assert class_metric(name, yes_no)(counts) == pytest.approx(reference)


def test_mae_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guess = rng.normal(40, 20, 50), rng.normal(40, 20, 50)
    sums = metrics.errors_by_subject(truth, guess, np.arange(50), 50)
    assert metrics.mae(sums.sum(0)) == pytest.approx(sk.mean_absolute_error(truth, guess))


def test_by_hand():
    # two of three neutral right, one of one happy wrong, one angry right
    counts = counts_of([0, 0, 0, 1, 2], [0, 0, 1, 0, 2], 3)
    assert metrics.uar(counts) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics.war(counts) == pytest.approx(3 / 5)
    assert metrics.f1_macro(counts) == pytest.approx((2 * 2 / 6 + 0 + 1) / 3)


def test_f1_without_a_hit_is_zero_and_never_undefined():
    positive = metrics.f1_positive(0)
    assert positive(counts_of([0, 0, 1], [1, 1, 1], 2)) == 0  # TP = 0
    assert positive(counts_of([1, 1], [1, 1], 2)) == 0  # no positive face at all


def test_balanced_accuracy_needs_both_classes():
    assert math.isnan(metrics.balanced_accuracy(counts_of([1, 1, 1], [1, 1, 0], 2)))


def test_unknown_truth_is_not_counted_and_unreadable_is_wrong():
    counts = counts_of([0, np.nan, 1, 1], [0, 0, np.nan, 1], 2)
    assert counts.sum() == 3
    assert metrics.war(counts) == pytest.approx(2 / 3)
    assert metrics.class_f1(counts)[0] == 1  # an unreadable answer is no false positive
    sums = metrics.errors_by_subject(
        np.array([10, np.nan]), np.array([12, 99]), np.zeros(2, dtype=np.int64), 1
    )
    assert sums.tolist() == [[2, 1]]


def test_counts_are_kept_by_subject():
    counts = metrics.confusion_by_subject(
        np.array([0.0, 1, 1]), np.array([0.0, 0, 1]), 2, np.array([0, 0, 2]), 3
    )
    assert counts[0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert counts[1].sum() == 0
    assert counts[2].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_resampling_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    stats = rng.random((20, 2, 3))
    weights = np.concatenate(list(metrics.subject_weights(20, seed=3, resamples=50)))
    assert (weights.sum(1) == 20).all()
    loop = [sum(w * s for w, s in zip(row, stats, strict=True)) for row in weights]
    assert metrics.resample(stats, seed=3, resamples=50) == pytest.approx(np.array(loop), rel=1e-6)


def test_interval_of_a_proportion_matches_the_binomial():
    n, right = 400, 300
    truth = np.zeros(n)
    guess = np.where(np.arange(n) < right, 0.0, 1.0)
    counts = metrics.confusion_by_subject(truth, guess, 2, np.arange(n), n)
    low, high = metrics.interval(metrics.war(metrics.resample(counts, seed=0)))
    share = right / n
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    assert low == pytest.approx(share - half, abs=0.006)
    assert high == pytest.approx(share + half, abs=0.006)


def test_interval_of_a_mean_matches_the_normal():
    error = np.random.default_rng(0).exponential(5, 600)
    sums = metrics.errors_by_subject(np.zeros(600), error, np.arange(600), 600)
    low, high = metrics.interval(metrics.mae(metrics.resample(sums, seed=0)))
    half = 1.96 * error.std() / math.sqrt(600)
    assert (low, high) == pytest.approx((error.mean() - half, error.mean() + half), abs=0.05)


def test_subjects_not_images_are_the_unit():
    # 40 subjects of 10 images that are all right or all wrong: the interval is that of n = 40
    right = np.repeat(np.arange(40) % 2, 10).astype(float)
    truth, subject = np.zeros(400), np.repeat(np.arange(40), 10)
    counts = metrics.confusion_by_subject(truth, right, 2, subject, 40)
    low, high = metrics.interval(metrics.war(metrics.resample(counts, seed=0)))
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 / 40), abs=0.03)


def test_blocks_do_not_change_the_draws(monkeypatch):
    whole = np.concatenate(list(metrics.subject_weights(30, seed=5, resamples=64)))
    monkeypatch.setattr(metrics, "_BLOCK", 30 * 7)
    assert (np.concatenate(list(metrics.subject_weights(30, 5, 64))) == whole).all()


def test_interval_of_nothing_is_undefined():
    assert all(math.isnan(end) for end in metrics.interval(np.full(100, np.nan)))


def test_whole_table_is_quick():
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(60):
        counts = metrics.confusion_by_subject(
            rng.integers(0, 2, 500).astype(float),
            rng.integers(0, 2, 500).astype(float),
            2,
            np.arange(500),
            500,
        )
        metrics.interval(metrics.balanced_accuracy(metrics.resample(counts, seed=0)))
    assert time.perf_counter() - started < 10
