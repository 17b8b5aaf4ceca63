"""Metrics on counts, so that one matrix product gives every bootstrap resample at once.

A classification result is a confusion tensor ``[..., K, K + 1]``: rows are the true class, columns
the predicted one, the last column holds answers that could not be read. Every metric below maps
such a tensor (any leading axes) to values, so point estimate and resamples share one definition.
Definitions follow scikit-learn; the F1 of an action unit is that of the positive class with
TP = 0 -> 0 (the DISFA and BP4D convention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 1000
_BLOCK = 20_000_000  # weights held at once: 80 MB in float32


def confusion_by_subject(
    truth: Array, prediction: Array, classes: int, subject: NDArray[np.int64], subjects: int
) -> Array:
    """Count answers per subject.

    Args:
        truth: [N] class indices; NaN is unknown and not counted.
        prediction: [N] class indices; NaN is an answer that could not be read.
        classes: K.
        subject: [N] index of the subject of each row, below ``subjects``.

    Returns:
        [subjects, K, K + 1] counts.
    """
    known = ~np.isnan(truth)
    column = np.where(np.isnan(prediction), classes, prediction)[known].astype(np.int64)
    row = truth[known].astype(np.int64)
    flat = (subject[known] * classes + row) * (classes + 1) + column
    size = subjects * classes * (classes + 1)
    counts = np.bincount(flat, minlength=size).astype(np.float64)
    return counts.reshape(subjects, classes, classes + 1)


def errors_by_subject(
    truth: Array, prediction: Array, subject: NDArray[np.int64], subjects: int
) -> Array:
    """Sum absolute errors per subject.

    Returns:
        [subjects, 2]: the sum of absolute errors and the number of rows; NaN truth is not counted.
    """
    known = ~np.isnan(truth)
    error = np.abs(truth[known] - prediction[known])
    total = np.bincount(subject[known], weights=error, minlength=subjects)
    rows = np.bincount(subject[known], minlength=subjects)
    return np.stack([total, rows.astype(np.float64)], axis=-1)


def _divide(above: Array, below: Array, empty: float) -> Array:
    full = np.full(np.broadcast_shapes(above.shape, below.shape), empty)
    return np.divide(above, below, out=full, where=below > 0)


def nanmean(values: Array) -> Array:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0).sum(-1), defined.sum(-1), np.nan)


def recalls(counts: Array) -> Array:
    """Recall of each class ``[..., K]``; NaN for a class without rows."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    return _divide(hits, counts.sum(-1), np.nan)


def class_f1(counts: Array) -> Array:
    """F1 of each class ``[..., K]``: 0 at TP = 0, NaN for a class neither true nor predicted."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    predicted = counts.sum(-2)[..., :-1]
    return _divide(2 * hits, counts.sum(-1) + predicted, np.nan)


def uar(counts: Array) -> Array:
    """Unweighted average recall: the mean recall of the classes that occur."""
    return nanmean(recalls(counts))


def war(counts: Array) -> Array:
    """Weighted average recall, which is accuracy; unreadable answers are wrong."""
    return _divide(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)), np.nan)


def f1_macro(counts: Array) -> Array:
    """Mean F1 of the classes that occur or were predicted."""
    return nanmean(class_f1(counts))


def balanced_accuracy(counts: Array) -> Array:
    """Mean recall over all classes; NaN when one of them has no rows (not measurable)."""
    return recalls(counts).mean(-1)


def f1_positive(positive: int) -> Callable[[Array], Array]:
    """F1 of one class; 0 at TP = 0, also when the class never occurs."""

    def metric(counts: Array) -> Array:
        return np.nan_to_num(class_f1(counts)[..., positive], nan=0.0)

    return metric


def mae(sums: Array) -> Array:
    """Mean absolute error from ``[..., 2]`` sums, in the unit of the label."""
    return _divide(sums[..., 0], sums[..., 1], np.nan)


def subject_weights(
    subjects: int, seed: int, resamples: int = RESAMPLES
) -> Iterator[NDArray[np.float32]]:
    """Yield blocks ``[b, subjects]`` of how often each subject is drawn in each resample.

    Subjects, not images, are the unit (Field & Welsh 2007, cluster bootstrap): images of one
    person are not independent.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, subjects))
    even = np.full(subjects, 1 / subjects)
    for start in range(0, resamples, block):
        draws = rng.multinomial(subjects, even, size=min(block, resamples - start))
        yield draws.astype(np.float32)


@lru_cache(maxsize=1)
def _kept_weights(subjects: int, seed: int, resamples: int) -> tuple[NDArray[np.float32], ...]:
    """The draws of the last call, as every name of a table asks for the same ones."""
    return tuple(subject_weights(subjects, seed, resamples))


def resample(stats: Array, seed: int, resamples: int = RESAMPLES) -> Array:
    """Statistics of every bootstrap resample.

    Args:
        stats: [subjects, ...] counts or sums per subject.
        seed: the same seed gives the same subjects, so differences between scorers are paired.

    Returns:
        [resamples, ...].
    """
    flat = stats.reshape(len(stats), -1)
    small = len(stats) * resamples <= _BLOCK
    draw = _kept_weights if small else subject_weights
    blocks = [weights @ flat for weights in draw(len(stats), seed, resamples)]
    return np.concatenate(blocks).reshape(resamples, *stats.shape[1:])


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values; NaN when fewer than half are defined."""
    defined = values[~np.isnan(values)]
    if len(defined) * 2 < max(1, len(values)):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def calibration_error(chance: Array, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), bins of equal width.

    Args:
        chance: [N] probability of each answer, 0 to 1.
        right: [N] whether it was right.
        bins: in how many the chances are put.

    Returns:
        Mean over the answers of how far the share of right ones in its bin is from their mean
        chance.
    """
    at = np.minimum((chance * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(at, weights=chance - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(chance))
