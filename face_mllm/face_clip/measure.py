"""What the averaged weights can do on identities they never saw: linear probes and zero-shot.

Probes are fitted on pooled features of training faces and scored on the val split, so a figure
says what a linear reader of the frozen tower (such as an MLLM's projector) can find there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from data_pipeline.labels.action_units import parse_action_unit
from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.expressions import BASIC7, EXPRESSIONS
from data_pipeline.labels.leaks import canonical_held_out
from face_mllm.face_clip.augment import move, normalise, still
from face_mllm.face_clip.faces import Faces
from face_mllm.face_clip.labels import NO_EXPRESSION, POSE_AXES, LabelSpace, Targets
from face_mllm.face_clip.model import FaceClipModel

MIN_EACH = 10  # fewer positives or negatives than this measure nothing
BATCH = 128

EXPRESSION_PROMPTS = (
    "an expression of {noun}",
    "a {adjective} expression",
    "a face, looking {adjective}",
    "{noun}",
)


def measure(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Faces,
    val: Faces,
    size: int,
    held_out: Iterable[str],
    probe_train: int,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of the model card.

    Args:
        size: side of the central square the tower reads.
        held_out: attributes never trained on; measured apart.
        probe_train: how many training faces the probes are fitted on.
        seed: which training faces those are.

    Returns:
        ``probe`` and ``zero_shot`` -> task -> figure or name -> figure, and ``n``.
    """
    chosen = np.random.default_rng(seed).permutation(len(train))[:probe_train]
    names = canonical_held_out(held_out)
    space = LabelSpace.of(val.labels, ())
    fit, fit_targets = (
        pooled(model, train.images, size, chosen),
        space.encode([train.labels[row] for row in chosen]),
    )
    features, targets = pooled(model, val.images, size), space.encode(val.labels)
    with torch.inference_mode():
        images = functional.normalize(model.visual_projection(torch.from_numpy(features)), dim=-1)
    return {
        "n": {"probe_train": len(chosen), "val": len(val), "subjects": len(set(val.subjects))},
        "probe": probes(space, fit, fit_targets, features, targets, names),
        "zero_shot": zero_shot(model, tokenizer, space, images, targets, names),
    }


@torch.inference_mode()
def pooled(
    model: FaceClipModel, images: torch.Tensor, size: int, rows: np.ndarray | None = None
) -> np.ndarray:
    """Pooled features of uint8 squares through the central crop, [faces, channels] float32."""
    chosen = torch.arange(len(images)) if rows is None else torch.from_numpy(rows)
    batches = []
    for part in chosen.split(BATCH):
        pixels = normalise(move(images[part], still(len(part)), size))
        batches.append(model.vision_model(pixels).pooler_output)
    return torch.cat(batches).numpy()


def probes(
    space: LabelSpace,
    fit: np.ndarray,
    fit_targets: Targets,
    features: np.ndarray,
    targets: Targets,
    held_out: Sequence[str],
) -> dict[str, Any]:
    """Fit a linear probe per label and score it."""
    units = _each(space.action_units, fit, fit_targets.active, features, targets.active, _f1)
    flags = _each(
        space.attributes, fit, fit_targets.attributes, features, targets.attributes, _balanced
    )
    unseen = {name: value for name, value in flags.items() if name in held_out}
    seen = {name: value for name, value in flags.items() if name not in held_out}
    return {
        "action_unit_f1": _with_mean(units),
        "expression_uar7": _expression_probe(fit, fit_targets, features, targets),
        "attribute_balanced_accuracy": _with_mean(seen),
        "held_out_balanced_accuracy": _with_mean(unseen),
        "age_mae": _age_probe(fit, fit_targets, features, targets),
        "head_pose_mae": _with_mean(_pose_probe(fit, fit_targets, features, targets)),
    }


def _each(names, fit, fit_flags, features, flags, scorer):  # type: ignore[no-untyped-def]
    """Score of one logistic probe per binary label that has enough of both kinds."""
    scores: dict[str, float] = {}
    for column, name in enumerate(names):
        known, wanted = _known(fit_flags[:, column]), _known(flags[:, column])
        here, there = fit_flags[known, column].numpy(), flags[wanted, column].numpy()
        if min(_rarest(here), _rarest(there)) >= MIN_EACH:
            scores[name] = scorer(fit[known], here, features[wanted], there)
    return scores


def _known(column: torch.Tensor) -> np.ndarray:
    return (~column.isnan()).numpy()


def _rarest(flags: np.ndarray) -> int:
    return int(min((flags == 1).sum(), (flags == 0).sum()))


def _logistic(balanced: bool = False) -> Pipeline:
    weight = "balanced" if balanced else None
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, max_iter=300, class_weight=weight)
    )


def _f1(fit: np.ndarray, here: np.ndarray, features: np.ndarray, there: np.ndarray) -> float:
    return float(f1_score(there, _logistic().fit(fit, here).predict(features)))


def _balanced(fit: np.ndarray, here: np.ndarray, features: np.ndarray, there: np.ndarray) -> float:
    predicted = _logistic(balanced=True).fit(fit, here).predict(features)
    return float(balanced_accuracy_score(there, predicted))


def _with_mean(scores: dict[str, float]) -> dict[str, float]:
    return {"mean": float(np.mean(list(scores.values()))), **scores} if scores else {}


def _seven(targets: Targets) -> np.ndarray:
    """Rows with one of the seven basic expressions."""
    seven = torch.tensor([EXPRESSIONS.index(name) for name in BASIC7])
    return torch.isin(targets.expression, seven).numpy()


def _expression_probe(
    fit: np.ndarray, fit_targets: Targets, features: np.ndarray, targets: Targets
) -> float | None:
    here, there = _seven(fit_targets), _seven(targets)
    if here.sum() < MIN_EACH or there.sum() < MIN_EACH:
        return None
    probe = _logistic(balanced=True).fit(fit[here], fit_targets.expression[here].numpy())
    predicted = probe.predict(features[there])
    return _uar(targets.expression[there].numpy(), predicted)


def _uar(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur."""
    classes = np.unique(truth)
    return float(recall_score(truth, predicted, labels=classes, average="macro"))


def _ridge(fit: np.ndarray, wanted: np.ndarray, features: np.ndarray) -> np.ndarray:
    return make_pipeline(StandardScaler(), Ridge(10.0)).fit(fit, wanted).predict(features)


def _age_probe(
    fit: np.ndarray, fit_targets: Targets, features: np.ndarray, targets: Targets
) -> dict[str, float]:
    """MAE in years on exact ages, beside that of always saying the mean."""
    here, there = _exact(fit_targets.age), _exact(targets.age)
    if here.sum() < MIN_EACH or there.sum() < MIN_EACH:
        return {}
    wanted, truth = fit_targets.age[here, 0].numpy(), targets.age[there, 0].numpy()
    predicted = _ridge(fit[here], wanted, features[there])
    return {
        "probe": float(np.abs(predicted - truth).mean()),
        "mean_predictor": float(np.abs(wanted.mean() - truth).mean()),
    }


def _exact(age: torch.Tensor) -> np.ndarray:
    return (age[:, 0] == age[:, 1]).numpy()


def _pose_probe(
    fit: np.ndarray, fit_targets: Targets, features: np.ndarray, targets: Targets
) -> dict[str, float]:
    scores = {}
    for axis, name in enumerate(POSE_AXES):
        here, there = _known(fit_targets.pose[:, axis]), _known(targets.pose[:, axis])
        if min(here.sum(), there.sum()) >= MIN_EACH:
            predicted = _ridge(fit[here], fit_targets.pose[here, axis].numpy(), features[there])
            truth = targets.pose[there, axis].numpy()
            scores[name] = float(np.abs(predicted - truth).mean())
    return scores


def zero_shot(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    space: LabelSpace,
    images: torch.Tensor,
    targets: Targets,
    held_out: Sequence[str],
) -> dict[str, Any]:
    """Score prompts without any fitting; ``images`` are unit-length embeddings."""
    flags: dict[str, float] = {}
    for column, name in enumerate(space.attributes):
        entry = attribute(name)
        pair = [[entry.absent], [entry.present]]
        score = _pair(model, tokenizer, images, targets.attributes[:, column], pair)
        flags.update({} if score is None else {name: score})
    units: dict[str, float] = {}
    for column, label in enumerate(space.action_units):
        name = parse_action_unit(label).name
        pair = [[f"no {label} {name}", f"no {label}"], [f"{label} {name}", label]]
        score = _pair(model, tokenizer, images, targets.active[:, column], pair)
        units.update({} if score is None else {label: score})
    return {
        "expression_uar7": _expression_prompts(model, tokenizer, images, targets),
        "attribute_balanced_accuracy": _with_mean(
            {name: value for name, value in flags.items() if name not in held_out}
        ),
        "held_out_balanced_accuracy": _with_mean(
            {name: value for name, value in flags.items() if name in held_out}
        ),
        "action_unit_balanced_accuracy": _with_mean(units),
    }


def _pair(model, tokenizer, images, flags, prompts) -> float | None:  # type: ignore[no-untyped-def]
    known = ~flags.isnan()
    truth = flags[known].numpy()
    if _rarest(truth) < MIN_EACH:
        return None
    predicted = _scores(model, tokenizer, images[known], prompts).argmax(1).numpy()
    return float(balanced_accuracy_score(truth, predicted))


def _expression_prompts(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    images: torch.Tensor,
    targets: Targets,
) -> float | None:
    from data_pipeline.captions import ADJECTIVES

    there = torch.from_numpy(_seven(targets)) & (targets.expression != NO_EXPRESSION)
    if int(there.sum()) < MIN_EACH:
        return None
    prompts = [
        [text.format(noun=name, adjective=ADJECTIVES[name]) for text in EXPRESSION_PROMPTS]
        for name in BASIC7
    ]
    predicted = _scores(model, tokenizer, images[there], prompts).argmax(1).numpy()
    wanted = np.array([BASIC7.index(EXPRESSIONS[row]) for row in targets.expression[there]])
    return _uar(wanted, predicted)


@torch.inference_mode()
def _scores(
    model: FaceClipModel,
    tokenizer: PreTrainedTokenizerFast,
    images: torch.Tensor,
    prompts: Sequence[Sequence[str]],
) -> torch.Tensor:
    """Mean logit of each group of prompts, [images, groups]."""
    texts = [text for group in prompts for text in group]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    embedded = functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    logits = images @ embedded.T
    return torch.stack([part.mean(-1) for part in logits.split([len(g) for g in prompts], -1)], -1)
