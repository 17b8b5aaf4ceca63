"""Annotators' votes as targets: a model trained on them answers by their shares."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline.build import build
from data_pipeline.questions import QuestionSet, render_questions
from data_pipeline.records import QA, FaceRecord, load_split, write_dataset
from face_mllm.draws import draw_questions
from face_mllm.rows import FaceRows, RowCollator, RowItem, model_inputs

VOTES = {"sadness": 0.5, "neutral": 0.3, "fear": 0.2}


@pytest.fixture
def built(tmp_path):
    """One face with votes, built by a recipe whose question set trains on them."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(buffer, "PNG")
    with write_dataset(tmp_path / "faces") as writer:
        labels = {"expression": "sadness", "expression_votes": VOTES}
        writer.add(FaceRecord("s_0", "s", "train", "s_0", buffer.getvalue(), labels))
    unbalanced = {"expression/word": {"wordings": ["Which expression?"]}}
    asked = {"forms": ["expression/word"], "soft_labels": True, "templates": unbalanced}
    (tmp_path / "soft.yaml").write_text(yaml.safe_dump(asked))
    recipe = {"questions": "soft.yaml", "sources": [{"source": "records", "root": "faces"}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    build(tmp_path / "recipe.yaml", tmp_path / "out")
    return tmp_path / "out"


def nll(model, processor, qa, pixels):
    """Negative log likelihood of one answer on its own, weight 1."""
    row = processor.tree_row([(qa.question, qa.answer, 1.0)])
    return model(**model_inputs(RowCollator(0)([RowItem(row, pixels, 0, 0)]))).loss


def test_the_loss_is_the_expectation_over_the_votes(make_model, built):
    model, processor = make_model()
    rows = FaceRows(built, processor, {}, 4, 512, seed=0)
    with torch.no_grad():
        together = model(**model_inputs(RowCollator(0)([rows[0]]))).loss
        pixels = rows[0].picture
        qas = FaceRecord.from_row(load_split(built, "train")[0]).qa
        alone = {qa.answer: nll(model, processor, qa, pixels) for qa in qas}
    expected = sum(share * float(alone[word]) for word, share in VOTES.items())
    assert float(together) == pytest.approx(expected, rel=1e-4)


def test_weights_of_a_build_are_those_of_the_loss(make_model, tmp_path):
    """Shares, balance and source weight end in one number an answer, which the loss takes."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(buffer, "PNG")
    voted = [{"happy": 3, "sad": 1}, {"happy": 4, "sad": 0}, {"happy": 1, "sad": 1}]
    lines = [f"a.png,{n},{row['happy']},{row['sad']},{n % 2}" for n, row in enumerate(voted)]
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "faces.csv").write_text("\n".join(["file,id,happy,sad,hat", *lines]))
    columns = {
        "image": "file",
        "id": "id",
        "expression_votes": ["happy", "sad"],
        "attributes": {"wearing_hat": "hat"},
    }
    source = {"source": "table", "root": "faces.csv", "columns": columns, "weight": 2.0}
    source |= {"split": "hash-100-0-0", "tasks": ["expression", "attribute"]}
    recipe = {"sources": [source], "soft_labels": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    build(tmp_path / "recipe.yaml", tmp_path / "out")
    qas = [FaceRecord.from_row(row).qa for row in load_split(tmp_path / "out", "train")]
    said = {(n, qa.answer): qa.weight for n, face in enumerate(qas) for qa in face}
    # 2.25 votes of 3 are for happiness: 3 / (2 x 2.25) = 2/3 each, sadness 3 / (2 x 0.75) = 2
    assert said[0, "happiness"] == pytest.approx(2.0 * 0.75 * 2 / 3)
    assert said[0, "sadness"] == pytest.approx(2.0 * 0.25 * 2)
    assert said[1, "hat"] == pytest.approx(2.0 * 1.5)  # one of three: 3 / (2 x 1)

    model, processor = make_model()
    rows = FaceRows(tmp_path / "out", processor, {}, 8, 512, seed=0)
    with torch.no_grad():
        items = [rows[place] for place in range(3)]
        together = model(**model_inputs(RowCollator(0)(items))).loss
        alone = [
            (qa.weight, float(nll(model, processor, qa, items[0].picture)))
            for face in qas
            for qa in face
        ]
    total = sum(weight for weight, _ in alone)
    assert total == pytest.approx(2.0 * 6)  # six questions of weight 2, whatever the balance
    expected = sum(weight * loss for weight, loss in alone)  # the trainer divides by the total
    assert float(together) == pytest.approx(expected, rel=1e-4)
    unweighted = sum(loss for _, loss in alone) / len(alone)
    assert abs(unweighted - expected / total) > 1e-3  # another number without them


def test_a_trained_model_answers_by_the_shares(make_model):
    """The weighted loss is least where the answers' probabilities are the shares."""
    model, processor = make_model()
    settings = {"forms": ("expression/word",), "soft_labels": True}
    question_set = QuestionSet(**settings)._completed("here")
    qas = render_questions({"expression_votes": VOTES}, "a", 0, question_set)
    pixels = torch.zeros(3, 32, 32)
    row = processor.tree_row([(qa.question, qa.answer, qa.weight) for qa in qas])
    batch = RowCollator(0)([RowItem(row, pixels, 0, 0)])
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        model(**model_inputs(batch)).loss.backward()
        optimiser.step()
    with torch.no_grad():
        said = {qa.answer: float(torch.exp(-nll(model, processor, qa, pixels))) for qa in qas}
    assert said == pytest.approx(VOTES, abs=0.05)


def test_the_answers_of_one_question_are_drawn_together():
    soft = [QA("expression", "all", "?", word, weight=share) for word, share in VOTES.items()]
    others = [QA("attribute", f"a{n}", "?", "no") for n in range(4)]
    seen = set()
    for turn in range(50):
        for shares in ({}, {"expression": 0.3, "attribute": 1}):
            rng = np.random.default_rng(0)
            asked = draw_questions([*soft, *others], shares, 2, rng, turn)
            drawn = [qa for answers in asked for qa in answers]
            words = [qa.answer for qa in drawn if qa.task == "expression"]
            assert words in ([], list(VOTES))
            assert len({(qa.task, qa.name) for qa in drawn}) == 2
            seen.add(bool(words))
    assert seen == {True, False}
    assert [len(answers) for answers in draw_questions(soft, {}, 1, rng)] == [3]


def test_a_row_that_is_too_long_loses_whole_questions(make_model, tiny_data):
    _, processor = make_model()
    soft = [QA("expression", "all", "Which?", word, weight=share) for word, share in VOTES.items()]
    row = processor.tree_row([(qa.question, qa.answer, qa.weight) for qa in soft])
    fits = FaceRows(tiny_data, processor, {}, 2, len(row.tree), seed=0)
    age = QA("age", "all", "How old is the person in this picture?", "35 years")
    _, kept = fits._fit("s", [*soft, age])
    assert sorted(set(kept.weights)) == sorted(VOTES.values())
