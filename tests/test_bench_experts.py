"""The table of ``benchmarks/experts``: answers in, paired gains out."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import table as room

from face_mllm.errors import UserError

CLASSES = ("neutral", "happiness")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "manifest.json").write_text(json.dumps({"classes": CLASSES}))
    return tmp_path


def answers(right, names=None):
    """One face a person; ``right`` says whose answer is right."""
    truth = np.arange(len(right)) % 2
    guess = np.where(right, truth, 1 - truth)
    names = names or [f"f{n}" for n in range(len(right))]
    logs = list(np.log(np.eye(2)[guess] * 0.8 + 0.1))
    columns = {"id": names, "subject": names, "truth": truth, "log_likelihoods": logs}
    return pd.DataFrame(columns)


def test_seeds_are_averaged_and_gains_are_paired(root):
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.6
    better = base | (rng.random(400) < 0.3)
    room.write_answers(root, "probe", 0, "target", answers(base))
    for seed, right in enumerate((better, better[::-1])):
        room.write_answers(root, "expert/x", seed, "target", answers(right))
    rows = {row.system: row for row in room.rows_of(root)}
    assert rows["probe"].war == pytest.approx(base.mean())
    assert rows["expert/x"].war == pytest.approx(better.mean())
    assert len(rows["expert/x"].by_seed) == 2
    value, draws = room.gain_over(rows["expert/x"], rows["probe"])
    apart = rows["expert/x"].uar_draws.std() ** 2 + rows["probe"].uar_draws.std() ** 2
    assert value > 0
    assert draws.std() ** 2 < apart  # the same people are drawn in both
    (line,) = room.json_lines(list(rows.values()), "probe")
    assert json.loads(line)["case"] == "target/expert/x"
    assert "| expert/x | 2 |" in room.markdown(list(rows.values()), CLASSES, "probe")


def test_other_faces_are_refused(root):
    room.write_answers(root, "a", 0, "target", answers(np.ones(4, bool)))
    room.write_answers(root, "b", 0, "target", answers(np.ones(4, bool), list("wxyz")))
    with pytest.raises(UserError, match="other faces of target"):
        room.rows_of(root)


def test_answers_of_an_evaluation_are_put_in_the_order_of_the_classes(tmp_path):
    rows = {
        "id": ["a", "b", "c"], "subject": ["a", "b", "c"],
        "task": ["expression", "expression", "age"], "kind": ["classes", "classes", "numbers"],
        "choices": [["happiness", "neutral", "anger"]] * 3,
        "log_likelihoods": [[-1.0, -2.0, -3.0], [-3.0, -0.5, -2.0], [0.0]],
        "truth": [0.0, 1.0, 30.0],
    }  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "predictions.parquet")
    found = room.from_eval(tmp_path / "predictions.parquet", CLASSES)
    assert found["truth"].tolist() == [1, 0]
    assert np.stack(found["log_likelihoods"]).tolist() == [[-2.0, -1.0], [-0.5, -3.0]]
