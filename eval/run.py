"""``face-mllm eval``: a model and its baselines on the same held-out faces, written whole."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from data_pipeline.manifest import protocols_of, question_sets
from data_pipeline.questions import QuestionSet
from data_pipeline.records import SPLITS, read_manifest, whole_folder
from eval import baselines
from eval.baselines import Clip, FaceSet
from eval.fusion import fusion_notes, fusion_rows
from eval.predict import Scorer, predict_generate, predict_likelihood, silent
from eval.results import entries, estimate
from eval.table import Asking, Faces, check_answerable, question_table
from face_mllm import distributed
from face_mllm.errors import UserError
from face_mllm.outputs import check_out
from face_mllm.progress import Progress, notice

log = logging.getLogger(__name__)
SCORERS = ("likelihood", "generate")
PACKAGES = ("face-mllm", "torch", "transformers", "peft", "datasets", "scikit-learn", "numpy")
PROBE_FACES = 4000  # most training faces a baseline is fitted on
SELECT_FACES = 1000  # most faces that choose the probe's regularisation


@dataclass
class Measured:
    """Everything the report needs.

    Args:
        predictions: all scorers' rows, model and baselines.
        results: the entries of ``results.json``.
        faces: the measured faces, for the contact sheet.
        about: what was run: split, counts of faces, held-out attributes, seconds, notes.
    """

    predictions: pd.DataFrame
    results: list[dict[str, Any]]
    faces: Faces
    about: dict[str, Any] = field(default_factory=dict)


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    tasks: Sequence[str] | None = None,
    split: str = "test",
    scorer: str = "likelihood",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    clip: Clip | Literal["auto"] | None = "auto",
) -> dict[str, Any]:
    """Measure an artifact on a built dataset and write results.json, predictions.parquet, report.

    Args:
        model: artifact folder.
        data: built dataset folder.
        out: new or empty folder; it appears whole or not at all.
        tasks: only these tasks, None for all the labels allow.
        split: train, val or test.
        scorer: likelihood, generate or both.
        limit: at most so many faces, drawn by hash of id.
        seed: of the draw and of the bootstrap.
        progress: called with (done, total, what).
        clip: for the zero-shot baseline; ``auto`` takes the model's own vision reference where it
            is a dual encoder, None leaves the baseline out.

    Returns:
        What ``results.json`` says (design of ``results``: :func:`eval.results.entries`).

    Raises:
        UserError: no artifact, no such split or task, labels that answer nothing, ``out`` in use.
    """
    from eval.report import write_report
    from face_mllm.artifact import read_artifact
    from face_mllm.scoring import LikelihoodScorer

    distributed.join()
    check_out(out)
    progress = progress if distributed.is_main() else None
    scorers = check_scorers(scorer)
    artifact, faces = read_artifact(model), _faces(data, split, limit, seed)
    asking = asking_for(read_manifest(data), tasks, _held_out(artifact.chain))
    if distributed.is_main():
        notice("reading the model")
    loaded = LikelihoodScorer.from_artifact(model)
    zero_shot = _own_clip(artifact.bases.vision) if isinstance(clip, str) else clip
    measured = measure(
        loaded, data, faces, asking, scorers, clip=zero_shot, seed=seed, progress=progress
    )
    measured.about |= {"model": str(model), "chain": artifact.chain, "data": str(data)}
    measured.about["bases"] = artifact.bases.to_json()
    measured.about["notes"] = other_protocols(artifact.chain, asking.protocols)
    measured.about["notes"] += fusion_notes(loaded, split)
    found = results_of(measured, seed)

    def write() -> None:
        for note in measured.about["notes"]:
            log.warning(note)
        with whole_folder(Path(out)) as folder:
            write_results(found, measured, folder)
            write_report(found, measured, folder / "report.html", seed)

    distributed.on_main(write)
    return found


def other_protocols(chain: Sequence[Mapping[str, Any]], measured: Mapping[str, str]) -> list[str]:
    """Say where a stage was trained by another protocol of a source than the one measured.

    What one fold tests the others train on, so such a figure may not be of unseen faces.

    Args:
        chain: stages of the artifact.
        measured: source -> protocol of the measured dataset.
    """
    return [
        f"{source} is measured by {protocol}, and stage {stage['stage']} was trained on it by "
        f"{trained}: faces tested here may have been trained on"
        for stage in chain
        for source, protocol in sorted(measured.items())
        if (trained := stage.get("protocols", {}).get(source, protocol)) != protocol
    ]


def check_scorers(scorer: str) -> tuple[str, ...]:
    """``both`` or one of the scorers, as a tuple."""
    if scorer != "both" and scorer not in SCORERS:
        raise UserError(f"no scorer {scorer!r}", "use likelihood, generate or both")
    return SCORERS if scorer == "both" else (scorer,)


def asking_for(
    manifest: dict[str, Any],
    tasks: Sequence[str] | None,
    held_out: Sequence[str] | None = None,
) -> Asking:
    """What to ask of a dataset's faces.

    Args:
        manifest: of the dataset.
        tasks: only these, None for all.
        held_out: attributes the model was never trained on; None takes the dataset's own list.
    """
    holdout = manifest.get("holdout_attributes", ()) if held_out is None else held_out
    return Asking(
        QuestionSet.from_manifest(manifest),
        tuple(holdout),
        None if tasks is None else tuple(tasks),
        protocols_of(manifest),
        question_sets(manifest),
    )


def measure(
    scorer: Scorer,
    data: Path | str,
    faces: Faces,
    asking: Asking,
    scorers: Sequence[str] = ("likelihood",),
    *,
    clip: Clip | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Score the faces with a model and every baseline its data allows.

    Args:
        scorer: any object with ``score``; with ``features`` too it gets a linear probe, with
            ``generate`` it can be read in free text.
        data: the dataset the faces come from, whose training split feeds the baselines.
    """
    progress, started = progress or silent, time.monotonic()
    table = question_table(faces.labels(), asking)
    check_answerable(table, asking, faces)
    train = _train_table(data, asking, table, seed)
    known = {} if train is None else baselines.priors(train[1])
    model = {}
    if "likelihood" in scorers:
        model["likelihood"] = predict_likelihood(scorer, faces, table, progress)
        model |= fusion_rows(scorer, faces, model["likelihood"], progress)
    if "generate" in scorers:
        model["generate"] = predict_generate(scorer, faces, table, known, progress)
    beside = {"majority": baselines.majority(table, known)} if known else {}
    if train is not None and hasattr(scorer, "features"):
        beside["linear_probe"] = _probe(scorer, data, faces, table, train, asking, seed, progress)
    if clip is not None:
        beside["clip_zero_shot"] = baselines.clip_zero_shot(clip, faces, table, progress)
    measured = _join(model, beside, faces, seed)
    measured.about |= _about(faces, train, asking, beside)
    measured.about["seconds"] = round(time.monotonic() - started, 1)
    return measured


def _join(
    model: dict[str, pd.DataFrame], beside: dict[str, pd.DataFrame], faces: Faces, seed: int
) -> Measured:
    figures = {name: estimate(rows, seed) for name, rows in beside.items() if len(rows)}
    listed: list[dict[str, Any]] = []
    for name, rows in model.items():
        listed += entries(estimate(rows, seed), figures, faces.split, name)
    everything = pd.concat([*model.values(), *beside.values()], ignore_index=True)
    return Measured(everything, listed, faces)


def _about(
    faces: Faces,
    train: tuple[Faces, pd.DataFrame] | None,
    asking: Asking,
    beside: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    return {
        "split": faces.split,
        "faces": len(faces),
        "faces_in_split": faces.total,
        "baseline_faces": 0 if train is None else len(train[0]),
        "train_faces": 0 if train is None else train[0].total,
        "holdout": list(asking.holdout),
        "baselines": list(beside),
        "synthetic": "synth" in asking.protocols,
    }


def _faces(data: Path | str, split: str, limit: int | None, seed: int) -> Faces:
    found = existing_splits(data)
    if found and split not in found:
        raise UserError(f"{data}: no split {split!r}", f"choose from {', '.join(found)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves no face", "give a limit of 1 or more")
    return Faces(data, split, limit, seed)


def existing_splits(data: Path | str) -> list[str]:
    """The splits a built dataset has."""
    return [split for split in SPLITS if any(Path(data).glob(f"{split}-*.parquet"))]


def _train_table(
    data: Path | str, asking: Asking, table: pd.DataFrame, seed: int
) -> tuple[Faces, pd.DataFrame] | None:
    if "train" not in existing_splits(data):
        return None
    faces = Faces(data, "train", PROBE_FACES, seed)
    wanted = replace(asking, tasks=tuple(table["task"].unique()))
    return faces, question_table(faces.labels(), wanted)


def _probe(
    scorer: Any,
    data: Path | str,
    faces: Faces,
    table: pd.DataFrame,
    train: tuple[Faces, pd.DataFrame],
    asking: Asking,
    seed: int,
    progress: Progress,
) -> pd.DataFrame:
    """Fit on train, choose on val; where val is what is measured, choose on a part of train."""
    test_set = FaceSet(table, *baselines.extract(scorer.features, faces, progress, faces.split))
    whole = FaceSet(train[1], *baselines.extract(scorer.features, train[0], progress, "train"))
    if "val" in existing_splits(data) and faces.split != "val":
        val = Faces(data, "val", SELECT_FACES, seed)
        wanted = replace(asking, tasks=tuple(table["task"].unique()))
        rows = question_table(val.labels(), wanted)
        select = FaceSet(rows, *baselines.extract(scorer.features, val, progress, "val"))
    else:
        whole, select = baselines.split_subjects(whole, seed)
    return distributed.on_main(lambda: baselines.linear_probe(test_set, whole, select, progress))


def _held_out(chain: list[dict[str, Any]]) -> list[str] | None:
    """Attributes no stage of the chain was trained on; None when the chain does not say."""
    lists = [set(stage["held_out"]) for stage in chain if "held_out" in stage]
    return sorted(set.intersection(*lists)) if lists else None


def _own_clip(reference: str) -> Clip | None:
    """The model's vision reference as a CLIP, if it is a dual encoder with a text tower."""
    from face_mllm.face_clip.zero_shot import ZeroShot
    from face_mllm.references import resolve

    folder = resolve(reference)
    config = json.loads((folder / "config.json").read_text())
    return ZeroShot(folder) if config.get("model_type") == "vision-text-dual-encoder" else None


def results_of(measured: Measured, seed: int) -> dict[str, Any]:
    """The content of ``results.json``."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "model": measured.about.get("model", ""),
        "data": measured.about.get("data", ""),
        "seed": seed,
        "versions": versions | {"python": platform.python_version()},
        "results": measured.results,
    }


def write_results(found: dict[str, Any], measured: Measured, folder: Path) -> None:
    """Write results.json (no NaN: unmeasurable is null) and predictions.parquet."""
    text = json.dumps(found, indent=1, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    stored = measured.predictions.copy()
    for column in ("choices", "values", "log_likelihoods"):
        stored[column] = [np.asarray(each).tolist() for each in stored[column]]
    stored.to_parquet(folder / "predictions.parquet", index=False)
