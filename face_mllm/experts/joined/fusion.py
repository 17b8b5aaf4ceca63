"""Late fusion of class log-probabilities and calibration, fitted on the val split only.

With m and e the log-probabilities of MLLM and expert, each softened by its own temperature, the
fused ones are ``log softmax(((1 - w) m + w e) / T)`` over the classes both know. Temperatures
minimise the negative log-likelihood on val (Guo et al. 2017, arXiv 1706.04599). Of a grid, only
weights count whose UAR, WAR and negative log-likelihood on val are not worse than the MLLM's alone;
w is the smallest of them within one standard error (of the paired difference, face by face) of the
least loss. As w = 0 is in the grid, fusion is never worse than the MLLM on val, and an expert that
a small val split only seems to favour gets little say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from eval import metrics
from face_mllm.errors import UserError
from face_mllm.outputs import write_whole

Array = NDArray[np.float64]
FUSION_FILE = "fusion.json"
GRID = tuple(round(step / 20, 2) for step in range(21))
TEMPERATURES = (0.05, 50.0)  # sharper: a val split without mistakes; softer: pure noise


@dataclass(frozen=True)
class Group:
    """Val faces that were asked with the same choices.

    Attributes:
        choices: the C answers.
        mllm: log-likelihoods [N, C] of the MLLM; they need not sum to one.
        expert: log-probabilities [N, C] of the expert; -inf where it does not know the class.
        truth: [N] index of the right answer.
    """

    choices: tuple[str, ...]
    mllm: Array
    expert: Array
    truth: NDArray[np.int64]


@dataclass(frozen=True)
class Fusion:
    """What was fitted, as it lies in the artifact.

    Attributes:
        weight: of the expert, 0 to 1.
        mllm_temperature, expert_temperature: of each alone.
        temperature: of the fused ones.
        val: figures on the val split: ``faces`` and, for ``mllm``, ``expert`` and ``fused``, what
            :func:`measure` tells after calibration; ``uncalibrated`` the same of ``mllm`` and
            ``expert`` before.
        data_fingerprint: of the dataset whose val split was used.
    """

    weight: float
    mllm_temperature: float
    expert_temperature: float
    temperature: float
    val: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""

    @property
    def unsettled(self) -> bool:
        """Whether a temperature ran into its lower bound: no mistake on val to tell it by."""
        found = (self.mllm_temperature, self.expert_temperature, self.temperature)
        return min(found) < 1.01 * TEMPERATURES[0]

    def fused(self, mllm: Array, expert: Array) -> Array:
        """Calibrated log-probabilities [..., C].

        Args:
            mllm: log-likelihoods [..., C].
            expert: log-probabilities [..., C]; -inf where it does not know the class.
        """
        return log_softmax(self.combined(mllm, expert) / self.temperature)

    def combined(self, mllm: Array, expert: Array) -> Array:
        """The weighted mean before the last temperature."""
        calm = log_softmax(mllm / self.mllm_temperature)
        return combine(calm, expert / self.expert_temperature, self.weight)

    def calibrated(self, mllm: Array) -> Array:
        """The MLLM's own log-probabilities, calibrated."""
        return log_softmax(mllm / self.mllm_temperature)


def log_softmax(logs: Array) -> Array:
    """Logarithms that sum to one over the last axis."""
    shifted = logs - logs.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def combine(mllm: Array, expert: Array, weight: float) -> Array:
    """Weighted mean of log-probabilities over the classes both know.

    The probability the MLLM gives to those classes together stays what it was, and a class the
    expert does not know keeps the MLLM's.

    Args:
        mllm: normalised, [..., C].
        expert: [..., C], -inf where unknown; need not be normalised.
        weight: of the expert.
    """
    known = np.isfinite(expert)
    if not weight or (known.sum(-1) < 2).any():
        return mllm
    theirs = np.where(known, expert, 0.0)
    mixed = np.where(known, (1 - weight) * mllm + weight * theirs, -np.inf)
    mass = _log_sum(np.where(known, mllm, -np.inf))
    return np.where(known, log_softmax(mixed) + mass, mllm)


def _log_sum(logs: Array) -> Array:
    top = logs.max(-1, keepdims=True)
    return top + np.log(np.exp(logs - top).sum(-1, keepdims=True))


def spread(logs: Array, classes: Sequence[str], choices: Sequence[str]) -> Array:
    """An expert's log-probabilities [..., K] laid out over a question's choices [..., C].

    Renormalised over the choices it knows; -inf elsewhere.
    """
    columns = [classes.index(word) if word in classes else -1 for word in choices]
    known = [column for column in columns if column >= 0]
    laid = np.full((*logs.shape[:-1], len(choices)), -np.inf)
    if known:
        laid[..., [at for at, column in enumerate(columns) if column >= 0]] = log_softmax(
            logs[..., known]
        )
    return laid


def fit(groups: Sequence[Group], fingerprint: str = "") -> Fusion:
    """Fit weight and temperatures.

    Args:
        groups: faces of the val split.
        fingerprint: of the dataset.

    Raises:
        UserError: no face, or no class that both know.
    """
    usable = [group for group in groups if len(group.truth)]
    if not any(np.isfinite(group.expert).sum(-1).min() >= 2 for group in usable):
        raise UserError(
            "late fusion: no val face with an expression that MLLM and expert both name",
            "build the data with expressions and a val split, or set expert.fusion: false",
        )
    mllm_t = _temperature([(log_softmax(g.mllm), g.truth) for g in usable])
    theirs = [(g.expert, g.truth) for g in usable if np.isfinite(_picked(g.expert, g.truth)).any()]
    expert_t = _temperature(theirs) if theirs else 1.0
    trials = [_trial(usable, weight, mllm_t, expert_t) for weight in GRID]
    chosen = choose(trials)
    val: dict[str, Any] = {
        "faces": sum(len(group.truth) for group in usable),
        "mllm": measure(usable, [chosen.calibrated(g.mllm) for g in usable]),
        "expert": measure(usable, [g.expert / expert_t for g in usable]),
        "fused": measure(usable, [chosen.fused(g.mllm, g.expert) for g in usable]),
        "uncalibrated": {
            "mllm": measure(usable, [g.mllm for g in usable]),
            "expert": measure(usable, [g.expert for g in usable]),
        },
    }
    temperatures = (mllm_t, expert_t, chosen.temperature)
    return Fusion(chosen.weight, *temperatures, val=val, data_fingerprint=fingerprint)


@dataclass(frozen=True)
class Trial:
    """A weight on the val split: what it makes, its UAR and WAR, and each face's loss [N]."""

    fusion: Fusion
    uar: float
    war: float
    losses: Array


def _trial(groups: Sequence[Group], weight: float, mllm_t: float, expert_t: float) -> Trial:
    trial = Fusion(weight, mllm_t, expert_t, 1.0)
    if weight:
        mixed = [(trial.combined(g.mllm, g.expert), g.truth) for g in groups]
        trial = Fusion(weight, mllm_t, expert_t, _temperature(mixed))
    logs = [trial.fused(g.mllm, g.expert) for g in groups]
    losses = [-_picked(each, g.truth) for each, g in zip(logs, groups, strict=True)]
    found = measure(groups, logs)
    return Trial(trial, found["uar"], found["war"], np.concatenate(losses))


def choose(trials: Sequence[Trial]) -> Fusion:
    """The smallest weight that does about as well as the best one.

    Args:
        trials: by rising weight, the first one the MLLM alone.
    """
    alone = trials[0]
    fair = [
        trial
        for trial in trials
        if trial.uar >= alone.uar
        and trial.war >= alone.war
        and trial.losses.mean() <= alone.losses.mean()
    ]
    best = min(fair, key=lambda trial: float(trial.losses.mean()))
    for trial in fair:
        behind = trial.losses - best.losses
        if behind.mean() <= behind.std() / np.sqrt(len(behind)):
            return trial.fusion
    return best.fusion


def measure(groups: Sequence[Group], logs: Sequence[Array]) -> dict[str, float]:
    """UAR, WAR, mean negative log-likelihood and calibration error of answers to the groups.

    The likelihood is over the faces whose class is known to whoever answers.

    Args:
        groups: the questions.
        logs: of each group, log-likelihoods [N, C]; they need not sum to one.
    """
    names = list(dict.fromkeys(word for group in groups for word in group.choices))
    truth, guess, losses, chances = [], [], [], []
    for group, answer in zip(groups, logs, strict=True):
        index = np.array([names.index(word) for word in group.choices])
        truth.append(index[group.truth])
        guess.append(index[answer.argmax(-1)])
        losses.append(-_picked(log_softmax(answer), group.truth))
        chances.append(np.exp(log_softmax(answer).max(-1)))
    everyone = np.concatenate(truth).astype(np.float64)
    said = np.concatenate(guess).astype(np.float64)
    nobody = np.zeros(len(everyone), dtype=np.int64)
    counts = metrics.confusion_by_subject(everyone, said, len(names), nobody, 1)[0]
    loss = np.concatenate(losses)
    chance = np.concatenate(chances)
    able = np.isfinite(chance)  # not where the expert knows none of the choices
    return {
        "uar": float(metrics.uar(counts)),
        "war": float(metrics.war(counts)),
        "nll": float(loss[np.isfinite(loss)].mean()),
        "ece": metrics.calibration_error(chance[able], (said == everyone)[able]),
    }


def _picked(logs: Array, truth: NDArray[np.int64]) -> Array:
    return np.take_along_axis(logs, truth[:, None], -1)[:, 0]


def _temperature(answers: Sequence[tuple[Array, NDArray[np.int64]]]) -> float:
    """Temperature with the least negative log-likelihood, searched on its logarithm."""

    def loss(log_temperature: float) -> float:
        softened = [
            -_picked(log_softmax(logs / np.exp(log_temperature)), truth) for logs, truth in answers
        ]
        losses = np.concatenate(softened)
        return float(losses[np.isfinite(losses)].mean())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def write_fusion(folder: Path, fusion: Fusion) -> None:
    """Write ``fusion.json`` into an artifact, whole or not at all."""
    write_whole(folder / FUSION_FILE, json.dumps(asdict(fusion), indent=1) + "\n")


def read_fusion(folder: Path | str) -> Fusion | None:
    """The fusion of an artifact, None where it has none.

    Raises:
        UserError: a damaged file.
    """
    path = Path(folder) / FUSION_FILE
    if not path.exists():
        return None
    try:
        return Fusion(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error})", "fit it again with `face-mllm fuse`"
        ) from error
