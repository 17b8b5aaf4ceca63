"""Late fusion in a scored answer: who is asked, what is said and how surely; closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import eval_doubles as doubles
import numpy as np
import pytest
import torch

from data_pipeline.labels.expressions import BASIC7
from data_pipeline.records import read_manifest
from eval import run
from eval.table import Faces
from face_mllm.chat import FaceMLLM
from face_mllm.experts.joined.fusion import Fusion

OWN, SECOND = 0.6, 0.3  # what the model gives its answer and the true class, when it is wrong
SURE = 0.8  # what the expert gives the true class


class Doubting(doubles.Knowing):
    """Wrong on every second face, with the truth in second place; its expert always knows."""

    def __init__(self, fusion: Fusion, classes: tuple[str, ...] = BASIC7) -> None:
        self.fusion = fusion
        self.processor = SimpleNamespace(expert=Expert(classes))

    def score(self, image, questions):
        rows = super().score(image, questions)
        return [
            self.doubt(row, doubles.number_of(image)) if tuple(choices) == BASIC7 else row
            for row, (_, choices) in zip(rows, questions, strict=True)
        ]

    def doubt(self, row, number):
        truth = int(row.argmax())
        chances = np.full(7, (1 - OWN - SECOND) / 5)
        chances[truth], chances[(truth + 1) % 7] = (SECOND, OWN) if number % 2 else (OWN, SECOND)
        return np.log(chances) - 7.0  # likelihoods of words need not sum to one


class Expert:
    """Gives the truth 0.8 and shares the rest; a class it has no name for it shares too."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes

    def log_probabilities(self, images):
        rows = []
        for image in images:
            word = doubles.labels_of(doubles.number_of(image)).get("expression")
            at = self.classes.index(word) if word in self.classes else 0
            row = np.full(len(self.classes), (1 - SURE) / (len(self.classes) - 1))
            row[at] = SURE
            rows.append(np.log(row))
        return torch.tensor(np.stack(rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return doubles.build(tmp_path_factory.mktemp("fused") / "data")


def measured(data, scorer):
    asking = run.asking_for(read_manifest(data), ["expression"])
    return run.measure(scorer, data, Faces(data, "test"), asking)


def rows_of(found, scorer):
    return found.predictions[found.predictions["scorer"] == scorer].reset_index(drop=True)


def war(found, scorer):
    entries = [e for e in found.results if (e["scorer"], e["metric"]) == (scorer, "war")]
    return entries[0]["value"]


def test_a_wrong_answer_is_mended_and_the_probability_is_the_geometric_mean(data):
    found = measured(data, Doubting(Fusion(0.5, 1.0, 1.0, 1.0)))
    alone, fused = rows_of(found, "likelihood"), rows_of(found, "late_fusion")
    wrong = (alone["prediction"] != alone["truth"]).to_numpy()
    assert wrong.sum() == (alone["id"].str[-4:].astype(int) % 2).sum() > 5
    assert war(found, "likelihood") == pytest.approx(1 - wrong.mean())
    assert war(found, "expert") == war(found, "late_fusion") == 1
    other, low = (1 - OWN - SECOND) / 5, (1 - SURE) / 6
    truth, rival = np.sqrt(SECOND * SURE), np.sqrt(OWN * low)
    total = truth + rival + 5 * np.sqrt(other * low)
    logs = fused["log_likelihoods"].to_numpy()[int(np.flatnonzero(wrong)[0])]
    assert np.exp(logs.max()) == pytest.approx(truth / total, rel=1e-12)
    assert np.exp(np.sort(logs)[-2]) == pytest.approx(rival / total, rel=1e-12)


def test_the_weight_decides_at_the_point_where_both_are_even(data):
    """Fusion turns an answer where w log(SURE/low) passes (1 - w) log(OWN/SECOND)."""
    theirs, own = np.log(SURE / ((1 - SURE) / 6)), np.log(OWN / SECOND)
    even = own / (own + theirs)
    below, above = (
        measured(data, Doubting(Fusion(even + step, 1.0, 1.0, 1.0))) for step in (-1e-3, 1e-3)
    )
    assert war(below, "late_fusion") == war(below, "likelihood") < 1
    assert war(above, "late_fusion") == 1
    # a model known to be too sure yields earlier: its logs are halved
    calmed = measured(data, Doubting(Fusion(even - 1e-3, 2.0, 1.0, 1.0)))
    assert war(calmed, "late_fusion") == 1


def test_without_weight_every_answer_is_the_models_own(data):
    found = measured(data, Doubting(Fusion(0.0, 1.7, 0.4, 1.0)))
    alone, fused = rows_of(found, "likelihood"), rows_of(found, "late_fusion")
    assert (alone["prediction"] == fused["prediction"]).all()
    one, two = (
        [e for e in found.results if e["scorer"] == s] for s in ("likelihood", "late_fusion")
    )
    assert [e["value"] for e in one] == [e["value"] for e in two]


def test_what_the_expert_cannot_name_stays_the_models(data):
    known = tuple(word for word in BASIC7 if word != "fear")
    found = measured(data, Doubting(Fusion(1.0, 1.0, 1.0, 1.0), known))
    alone, fused = rows_of(found, "likelihood"), rows_of(found, "late_fusion")
    fear = BASIC7.index("fear")
    for own, both in zip(alone["log_likelihoods"], fused["log_likelihoods"], strict=True):
        assert both[fear] == pytest.approx((own - np.log(np.exp(own).sum()))[fear], rel=1e-12)


def test_describe_says_what_the_evaluation_scores(data, tmp_path):
    scorer = Doubting(Fusion(0.5, 1.0, 1.0, 1.3))
    found = measured(data, scorer)
    fused = rows_of(found, "late_fusion").set_index("id")
    model = FaceMLLM(scorer, tmp_path)
    said = {}
    for record in Faces(data, "test"):
        if record.id not in fused.index:
            continue
        image, row = record.open_image(), fused.loc[record.id]
        (own,) = scorer.score(image, [(row["question"], row["choices"])])
        opinion = model.second_opinion(image, row["choices"], own)
        assert opinion["answer"] == row["choices"][int(row["prediction"])]
        assert opinion["probability"] == pytest.approx(
            np.exp(row["log_likelihoods"].max()), abs=1e-4
        )
        said[doubles.number_of(image) % 2] = opinion["disagrees"]
    assert said == {0: False, 1: True}
