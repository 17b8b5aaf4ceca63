"""How far face-clip's frozen tower carries to photographs: linear probes on record folders.

    python benchmarks/face_clip_photographs.py --clip embedded:face-clip QA_REAL_DIR ...

Each folder is a built dataset of real photographs (docs/recipes/*.yaml). Probes are fitted on its
train split and scored on its val split; the majority class or mean stands beside them. The rival
is the same network with random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from face_mllm.face_clip import FaceClipModel, load_face_clip
from face_mllm.face_clip.faces import load_faces
from face_mllm.face_clip.measure import pooled
from face_mllm.references import resolve

MIN_EACH = 10


def words(labels: list[dict], key: str) -> np.ndarray:
    return np.array([row.get(key, "") for row in labels])


def class_rows(name, fit, fit_words, features, truth, rival):
    """UAR of a balanced logistic probe, ours and the rival's, over classes with enough faces."""
    kinds, counts = np.unique(fit_words[fit_words != ""], return_counts=True)
    kinds = [k for k, c in zip(kinds, counts, strict=True) if c >= MIN_EACH]
    here, there = np.isin(fit_words, kinds), np.isin(truth, kinds)
    if len(kinds) < 2 or there.sum() < MIN_EACH:
        return
    scores = []
    for train, test in ((fit[0], features[0]), (fit[1], features[1])):
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.05, max_iter=300, class_weight="balanced")
        ).fit(train[here], fit_words[here])
        guessed = probe.predict(test[there])
        scores.append(recall_score(truth[there], guessed, average="macro", zero_division=0))
    emit(name, "uar", *scores, rival, 1 / len(kinds), int(there.sum()))


def age_rows(name, fit, fit_ages, features, ages, rival):
    here, there = ~np.isnan(fit_ages), ~np.isnan(ages)
    if here.sum() < MIN_EACH or there.sum() < MIN_EACH:
        return
    scores = []
    for train, test in ((fit[0], features[0]), (fit[1], features[1])):
        probe = make_pipeline(StandardScaler(), Ridge(100.0)).fit(train[here], fit_ages[here])
        scores.append(float(np.abs(probe.predict(test[there]) - ages[there]).mean()))
    mean = float(np.abs(fit_ages[here].mean() - ages[there]).mean())
    emit(name, "age_mae", *scores, rival, mean, int(there.sum()))


def emit(case, unit, ours, theirs, rival, constant, n):
    row = {"bench": "face_clip_photographs", "case": case, "ours": round(ours, 3)}
    row |= {"rival": round(theirs, 3), "rival_name": rival, "unit": unit}
    row |= {"ratio": round(ours / theirs, 3), "constant": round(constant, 3), "n": n}
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--clip", default="embedded:face-clip")
    arguments = parser.parse_args()
    model = load_face_clip(resolve(arguments.clip))
    torch.manual_seed(0)
    blank = FaceClipModel(model.config).eval()
    size = model.config.vision_config.image_size
    for folder in arguments.folders:
        parts = [load_faces([folder], split, round(size * 8 / 7)) for split in ("train", "val")]
        fit, features = (
            [pooled(tower, part.images, size) for tower in (model, blank)] for part in parts
        )
        train, val = (part.labels for part in parts)
        sources = [np.array(part.sources) for part in parts]
        for source in np.unique(sources[1]):
            a, b = sources[0] == source, sources[1] == source
            chosen = [f[a] for f in fit], [f[b] for f in features]
            for key in ("expression", "gender", "age_band"):
                class_rows(
                    f"{source}/{key}", chosen[0], words(train, key)[a], chosen[1],
                    words(val, key)[b], "random weights",
                )  # fmt: skip
            ages = [np.array([row.get("age", np.nan) for row in r], float) for r in (train, val)]
            age_rows(
                f"{source}/age", chosen[0], ages[0][a], chosen[1], ages[1][b], "random weights"
            )


if __name__ == "__main__":
    main()
