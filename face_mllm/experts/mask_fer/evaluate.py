"""mask-FER across datasets: trained on one, measured on it and on others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
from rich.table import Table

from data_pipeline.records import read_manifest, whole_folder
from eval import metrics
from eval.results import Estimate, Key, entries, estimate, number
from eval.tasks import draw
from face_mllm.artifact import package_versions
from face_mllm.errors import UserError
from face_mllm.experts.mask_fer.config import check_remap, class_name
from face_mllm.experts.mask_fer.expert import MaskFerExpert
from face_mllm.experts.mask_fer.faces import (
    ExpressionFaces,
    load_expressions,
    source_names,
)
from face_mllm.experts.mask_fer.inputs import Inputs
from face_mllm.experts.mask_fer.model import LogitsFrom
from face_mllm.hardware import choose_hardware
from face_mllm.outputs import check_out
from face_mllm.progress import Progress
from face_mllm.train import manifest_fingerprint

METRICS = ("war", "uar", "f1_macro")
# what is read of the description of a training
NEEDED = ("config", "class_counts", "data_fingerprint")


@dataclass(frozen=True)
class Measured:
    """One dataset's figures.

    Args:
        data: its folder.
        is_source: whether the expert was trained on it.
        figures: by (protocol, task, name, metric).
        baseline: the same for always answering the training split's most frequent class.
        scored: one row a face.
        left_out: faces whose class the expert does not know, by name.
        shared: sources it has in common with the training data although it is another dataset:
            the same faces may be in both.
    """

    data: Path
    is_source: bool
    figures: dict[Key, Estimate]
    baseline: dict[Key, Estimate]
    scored: pd.DataFrame
    left_out: dict[str, int]
    shared: tuple[str, ...] = ()

    def figure(self, metric: str) -> Estimate:
        """The figure over all classes."""
        return next(each for key, each in self.figures.items() if key[2:] == ("all", metric))


def evaluate(
    model: Path,
    data: Sequence[Path],
    out: Path,
    *,
    split: str = "test",
    logits_from: LogitsFrom | None = None,
    remap: Mapping[str, str] | None = None,
    limit: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Measure an expert on datasets; write results.json and predictions.parquet.

    Args:
        model: artifact folder.
        data: built datasets, the training one among them or not.
        out: folder to write.
        split: of every dataset.
        logits_from: which logits answer; None takes the artifact's.
        remap: class -> class of the datasets, by canonical name; None takes the training's.
        limit: at most so many faces of each dataset, drawn by hash of id; 0 for all.
        seed: of the bootstrap and of that draw.
        progress: called with (done, total, text).
        cache: folder of the feature cache; the user's if not given.

    Returns:
        The content of results.json.

    Raises:
        UserError: no such artifact, or one that does not say how it was trained; datasets that
            cannot be measured.
    """
    check_out(out)
    expert = MaskFerExpert.from_pretrained(model, choose_hardware().device)
    for key in NEEDED:
        if key not in expert.training:
            raise UserError(f"{model}: says no {key} of its training", "train it again")
    datasets = load_datasets(data, split, expert, remap)  # all of them, before any picture
    measured = []
    for number_, (root, every) in enumerate(zip(data, datasets, strict=True)):
        faces = every.take(draw(every.column("id"), limit or None, seed))
        inputs = Inputs(faces, expert.clip, expert.eye, cache=cache)
        inputs.compute(False, progress)
        answers = expert.answer_all(inputs, len(faces), logits_from).double().numpy()
        measured.append(_measure(expert, root, faces, answers, split, seed + number_))
    found = {"limit": limit, **_results(model, split, seed, measured)}
    with whole_folder(out) as partial:
        text = json.dumps(found, indent=1, allow_nan=False)
        (partial / "results.json").write_text(text + "\n", encoding="utf-8")
        table = pd.concat([each.scored.assign(data=str(each.data)) for each in measured])
        table.to_parquet(partial / "predictions.parquet", index=False)
    return found


def load_datasets(
    data: Sequence[Path], split: str, expert: MaskFerExpert, remap: Mapping[str, str] | None
) -> list[ExpressionFaces]:
    """The faces of every dataset; no picture is opened.

    Raises:
        UserError: a dataset without manifest, split or faces of the classes; a remap to none.
    """
    mapping = expert.training["config"]["remap"] if remap is None else remap
    try:
        check_remap(mapping, expert.classes)
    except ValueError as error:
        raise UserError(f"remap {error}", "choose one of the expert's classes") from error
    for root in data:
        read_manifest(root)
    return [load_expressions(root, split, expert.classes, mapping) for root in data]


def _measure(
    expert: MaskFerExpert,
    root: Path,
    faces: ExpressionFaces,
    answers: np.ndarray,
    split: str,
    seed: int,
) -> Measured:
    scored = _table(root, faces, expert.classes, split)
    scored["log_likelihoods"] = list(answers)
    scored["prediction"] = answers.argmax(-1).astype(np.float64)
    majority = float(np.argmax(expert.training["class_counts"]))
    manifest = read_manifest(root)
    is_source = manifest_fingerprint(manifest) == expert.training["data_fingerprint"]
    common = set(source_names(manifest)) & set(expert.training.get("sources", ()))
    return Measured(
        root,
        is_source,
        estimate(scored, seed),
        estimate(scored.assign(prediction=majority), seed),
        scored,
        dict(faces.left_out),
        () if is_source else tuple(sorted(common)),
    )


def _table(root: Path, faces: ExpressionFaces, classes: tuple[str, ...], split: str) -> Any:
    """The rows of ``eval``, so its metrics and intervals are the only ones."""
    named = {source["protocol"] for source in read_manifest(root).get("sources", ())}
    ids = faces.column("id")
    subjects = [who or face for who, face in zip(faces.column("subject"), ids, strict=True)]
    table = pd.DataFrame({"id": ids, "subject": subjects, "source": faces.column("source")})
    table["choices"] = [classes] * len(ids)
    return table.assign(
        protocol=" + ".join(sorted(named)) or "unnamed",
        split=split,
        task="expression",
        name="all",
        kind="classes",
        truth=faces.targets.double().numpy(),
        valid=True,
    )


def _results(model: Path, split: str, seed: int, measured: list[Measured]) -> dict[str, Any]:
    listed = [
        {**entry, "data": str(each.data), "trained_on": each.is_source, "shared": list(each.shared)}
        for each in measured
        for entry in entries(each.figures, {"majority": each.baseline}, split, "mask_fer")
    ]
    return {
        "model": str(model),
        "data": [str(each.data) for each in measured],
        "seed": seed,
        "versions": package_versions(),
        "results": listed,
        "left_out": {str(each.data): each.left_out for each in measured},
        "cross_dataset": {metric: cross_dataset(measured, metric) for metric in METRICS},
    }


def cross_dataset(measured: Sequence[Measured], metric: str) -> dict[str, Any]:
    """Mean of a metric over datasets, with the training one (as the paper prints) and without.

    Returns:
        ``with_source`` and ``unseen``, each with value, ci95 and how many datasets; None where
        there is none.
    """
    unseen = [each.figure(metric) for each in measured if not each.is_source]
    return {
        "with_source": _mean([each.figure(metric) for each in measured])
        if len(unseen) < len(measured)
        else None,
        "unseen": _mean(unseen),
    }


def _mean(figures: list[Estimate]) -> dict[str, Any] | None:
    if not figures:
        return None
    low, high = metrics.interval(np.stack([each.draws for each in figures]).mean(0))
    value = float(np.mean([each.value for each in figures]))
    return {
        "value": number(value),
        "ci95": [number(low), number(high)],
        "datasets": len(figures),
    }


def logits_source(word: str) -> LogitsFrom | None:
    """The ``--logits-from`` of the command line; empty means the artifact's.

    Raises:
        UserError: another word.
    """
    if word and word not in get_args(LogitsFrom):
        raise UserError(f"--logits-from {word!r}", f"choose {', '.join(get_args(LogitsFrom))}")
    return cast(LogitsFrom, word) if word else None


def class_map(pairs: Sequence[str]) -> dict[str, str]:
    """The ``--remap old=new`` of the command line, in canonical names.

    Raises:
        UserError: not of this form, or a word that is no expression.
    """
    mapping = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not sign:
            raise UserError(f"--remap {pair!r}", "write it as old=new, such as contempt=disgust")
        try:
            mapping[class_name(old)] = class_name(new)
        except ValueError as error:
            raise UserError(f"--remap {pair!r}: {error}") from error
    return mapping


def table(found: dict[str, Any]) -> Table:
    """The results as a table for the terminal."""
    drawn = Table("data", "n", "accuracy", "95 %", "UAR", "majority", title="mask-FER")
    whole = [each for each in found["results"] if each["name"] == "all"]
    for war in (each for each in whole if each["metric"] == "war"):
        uar = next(e for e in whole if e["data"] == war["data"] and e["metric"] == "uar")
        shared = f" (as trained on: {', '.join(war['shared'])})" if war["shared"] else ""
        name = war["data"] + (" (trained on)" if war["trained_on"] else shared)
        majority = war["baselines"]["majority"]
        drawn.add_row(name, str(war["n"]), *_cells(war), _text(uar["value"]), _text(majority))
    means = found["cross_dataset"]
    for key, name in (("with_source", "mean with source"), ("unseen", "mean unseen")):
        if means["war"][key]:
            cells = _cells(means["war"][key])
            drawn.add_row(f"[bold]{name}", "", *cells, _text(means["uar"][key]["value"]), "")
    return drawn


def _cells(entry: dict[str, Any]) -> tuple[str, str]:
    return _text(entry["value"]), " - ".join(_text(each) for each in entry["ci95"])


def _text(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
