"""``face-mllm exp-clip eval``: five prompt types, each beside plain and up-sampled CLIP.

Every row is measured on the same faces with the same bootstrap draws, so the gain over plain CLIP
under the identical prompt type has an interval of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data_pipeline.records import FaceRecord, read_manifest, whole_folder
from eval import metrics
from eval.results import Estimate, Key, entries, estimate, number
from eval.run import PACKAGES
from eval.table import COLUMNS, Faces, score_rows
from face_mllm.errors import UserError
from face_mllm.experts.exp_clip.artifact import ExpClip, load_exp_clip
from face_mllm.experts.exp_clip.prompts import CLASSES, PROMPT_TYPES
from face_mllm.experts.exp_clip.table import write_table
from face_mllm.experts.exp_clip.units import ShortClips, Units, classes_of, read_units
from face_mllm.experts.exp_clip.zero_shot import (
    OURS,
    PLAIN,
    UPSAMPLED,
    Ensemble,
    projections,
    prompt_features,
    zero_shot,
)
from face_mllm.progress import Progress

MEAN_OF_FOLDS = "mean of {count} folds"
Figures = dict[Key, Estimate]


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Args:
        split: of every dataset.
        classes: the first 7, 8 or 11 of the paper's order; 0 takes as many as the data show.
        prompt_types: of the five.
        ensemble: mean of logits, or of embeddings.
        clips: the faces of one subject are the frames of one clip.
        short_clips: what stands for a clip of at most 16 frames, ``all`` of them or the ``first``,
            as the released code has it; that one needs a dataset built with every frame.
        limit: at most so many faces, drawn by hash of id; 0 for all.
        seed: of draw, bootstrap and the up-sampled control.
    """

    split: str = "test"
    classes: int = 0
    prompt_types: tuple[int, ...] = PROMPT_TYPES
    ensemble: Ensemble = "logits"
    clips: bool = False
    short_clips: ShortClips = "all"
    limit: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Fold:
    """One dataset: rows to score and their image features.

    Args:
        rows: a face or clip each, columns of :data:`eval.table.COLUMNS`.
        features: [rows, D], or [rows, frames, D] with NaN where a clip is shorter.
    """

    rows: pd.DataFrame
    features: torch.Tensor


def evaluate(
    model: Path | str,
    data: Sequence[Path],
    out: Path,
    asked: Asked = Asked(),
    *,
    clip: str | None = None,
    paper_preprocess: bool | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a head and write results.json, predictions.parquet, table.md.

    Args:
        model: expert folder or released checkpoint.
        data: built datasets; several are folds, and their mean is reported too.
        out: new or empty folder; it appears whole or not at all.
        clip: the CLIP of a released checkpoint.
        paper_preprocess: see :func:`face_mllm.experts.exp_clip.artifact.load_exp_clip`.

    Raises:
        UserError: nothing to measure, or a model that does not fit.
    """
    told: Progress = progress or (lambda _done, _total, _text: None)
    if asked.clips and asked.limit:
        raise UserError("a limit would tear clips apart", "leave out --limit or --clips")
    with whole_folder(out) as folder:
        names, units = _protocols(data), labelled(data, asked)  # all of them, before any picture
        expert = load_exp_clip(model, clip, paper_preprocess)
        folds = [
            load_fold(expert, each, name, asked, told)
            for each, name in zip(units, names, strict=True)
        ]
        predictions = pd.concat([scored for fold in folds for scored in score(expert, fold, asked)])
        figures = {
            name: with_mean(_of(rows, names, asked.seed))
            for name, rows in predictions.groupby("scorer")
        }
        found = {
            "model": str(model),
            "data": [str(root) for root in data],
            "seed": asked.seed,
            "versions": {name: version(name) for name in PACKAGES},
            "clip": expert.info["clip"],
            "paper_preprocess": expert.info["paper_preprocess"],
            "ensemble": asked.ensemble,
            "classes": list(units[0].classes),
            "left_out": [each.left_out for each in units],
            "results": listed(figures, asked),
        }
        (folder / "results.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        _store(predictions).to_parquet(folder / "predictions.parquet", index=False)
        write_table(found, folder / "table.md")
    return found


def _of(rows: pd.DataFrame, protocols: Sequence[str], seed: int) -> Figures:
    """Figures of each fold, its subjects resampled on their own and apart from the other folds'."""
    figures: Figures = {}
    for number_, name in enumerate(protocols):
        figures |= estimate(rows[rows["protocol"] == name], seed + number_)
    return figures


def labelled(data: Sequence[Path], asked: Asked) -> list[Units]:
    """What is measured of each dataset, under the same classes."""
    faces = [Faces(root, asked.split, asked.limit or None, asked.seed) for root in data]
    classes = CLASSES[: asked.classes] if asked.classes else classes_of(faces)
    return [
        read_units(root, each, classes, asked.clips, asked.short_clips)
        for root, each in zip(data, faces, strict=True)
    ]


def _protocols(data: Sequence[Path]) -> list[str]:
    """A name for each dataset: its protocol, numbered where two are alike."""
    names = []
    for root in data:
        sources = read_manifest(root).get("sources", ())
        names.append(" + ".join(sorted({each["protocol"] for each in sources})) or "unnamed")
    if len(set(names)) == len(names):
        return names
    return [f"{name}, fold {at}" for at, name in enumerate(names, 1)]


def load_fold(
    expert: ExpClip, units: Units, protocol: str, asked: Asked, progress: Progress
) -> Fold:
    """Rows and features of one dataset."""
    table = [_row(record, protocol, units.classes, asked) for record, _ in units.kept]
    places = sorted(place for _, pictures in units.kept for place in pictures)
    records = (units.faces[at] for at in places)
    found = expert.clip.features(records, progress=_told(progress, places))
    at_place = dict(zip(places, found.float(), strict=True))
    stacks = [torch.stack([at_place[at] for at in pictures]) for _, pictures in units.kept]
    return Fold(pd.DataFrame(table, columns=COLUMNS), _padded(stacks, asked.clips))


def _row(record: FaceRecord, protocol: str, classes: tuple[str, ...], asked: Asked) -> tuple:
    name = record.subject if asked.clips else record.id
    face = (name, record.subject, record.source, protocol, asked.split)
    truth = float(classes.index(record.labels["expression"]))
    return (*face, "expression", "all", "classes", "", classes, (), truth)


def _told(progress: Progress, places: list[int]) -> Progress:
    return lambda done, _total, _text: progress(done, len(places), "CLIP features")


def _padded(stacks: list[torch.Tensor], clips: bool) -> torch.Tensor:
    if not clips:
        return torch.cat(stacks)
    return torch.nn.utils.rnn.pad_sequence(stacks, batch_first=True, padding_value=float("nan"))


def score(expert: ExpClip, fold: Fold, asked: Asked) -> Iterator[pd.DataFrame]:
    """Scored rows of Exp-CLIP and its controls under every prompt type asked for."""
    classes, scale = fold.rows["choices"].iat[0], expert.clip.logit_scale
    for kind in asked.prompt_types:
        texts = prompt_features(expert.clip, classes, kind)
        for name, projection in projections(expert.head, asked.seed).items():
            logits = zero_shot(projection, fold.features, texts, scale, asked.ensemble)
            logs = logits.double().log_softmax(-1).numpy()
            yield score_rows(fold.rows, scorer(name, kind), list(logs))


def scorer(name: str, prompt_type: int) -> str:
    """Name of a row: who, under which prompt type."""
    return f"{name}/prompt{prompt_type}"


def with_mean(figures: Figures) -> Figures:
    """Figures of all folds, and their means where there are several."""
    protocols = sorted({key[0] for key in figures})
    if len(protocols) == 1:
        return figures
    label = MEAN_OF_FOLDS.format(count=len(protocols))
    means: Figures = {}
    for rest in {key[1:] for key in figures}:
        parts = [figures[(name, *rest)] for name in protocols if (name, *rest) in figures]
        if len(parts) == len(protocols):
            means[(label, *rest)] = _mean(parts)
    return figures | means


def _mean(parts: list[Estimate]) -> Estimate:
    """Plain mean over folds; each fold's resamples are its own."""
    return Estimate(
        float(np.mean([part.value for part in parts])),
        np.mean([part.draws for part in parts], axis=0),
        sum(part.faces for part in parts),
        float(np.mean([part.invalid_rate for part in parts])),
        sum(part.rows for part in parts),
    )


def listed(figures: dict[str, Figures], asked: Asked) -> list[dict[str, Any]]:
    """Entries of results.json: Exp-CLIP, its controls under the same prompt type, and the gain."""
    found = []
    for kind in asked.prompt_types:
        ours = figures[scorer(OURS, kind)]
        beside = {name: figures[scorer(name, kind)] for name in (PLAIN, UPSAMPLED)}
        for entry in entries(ours, beside, asked.split, scorer(OURS, kind)):
            key = (entry["protocol"], entry["task"], entry["name"], entry["metric"])
            gain = ours[key].draws - beside[PLAIN][key].draws
            low, high = metrics.interval(gain)
            entry["prompt_type"] = kind
            entry["baselines_ci95"] = {
                name: [number(end) for end in metrics.interval(rows[key].draws)]
                for name, rows in beside.items()
            }
            entry["gain"] = number(ours[key].value - beside[PLAIN][key].value)
            entry["gain_ci95"] = [number(low), number(high)]
            found.append(entry)
    return found


def _store(predictions: pd.DataFrame) -> pd.DataFrame:
    stored = predictions.copy()
    for column in ("choices", "values", "log_likelihoods"):
        stored[column] = [np.asarray(each).tolist() for each in stored[column]]
    return stored
