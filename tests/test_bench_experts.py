"""The table of ``benchmarks/experts``: answers in, paired gains out."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import mllm
import table as room

from face_mllm.config import StageConfig
from face_mllm.configio import load_yaml_model
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
    with pytest.raises(UserError, match="no face that all systems answered"):
        room.rows_of(root, common=True)


def test_common_faces_are_those_all_systems_answered(root):
    room.write_answers(root, "a", 0, "target", answers(np.array([1, 1, 0, 0, 0, 0], bool)))
    room.write_answers(root, "b", 0, "target", answers(np.array([0, 1, 0], bool)))
    with pytest.raises(UserError, match="--common"):
        room.rows_of(root)
    rows = {row.system: row for row in room.rows_of(root, common=True)}
    assert {row.n for row in rows.values()} == {3}
    assert rows["a"].war == pytest.approx(2 / 3)
    assert rows["b"].war == pytest.approx(1 / 3)


def predictions(path, logs, **more):
    """What an evaluation of two faces writes, age asked too; ``logs`` by scorer."""
    choices = [["happiness", "neutral", "anger"]] * 3
    shared = {
        "id": ["a", "b", "c"], "subject": ["a", "b", "c"],
        "task": ["expression", "expression", "age"], "kind": ["classes", "classes", "numbers"],
        "choices": choices, "truth": [0.0, 1.0, 30.0],
    }  # fmt: skip
    tables = [
        pd.DataFrame({**shared, "scorer": name, "log_likelihoods": [*rows, [0.0]]})
        for name, rows in logs.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).to_parquet(path)
    return path


OWN = [[-1.0, -2.0, -3.0], [-3.0, -3.5, -2.0]]
FUSED = [[-1.0, -2.0, -3.0], [-3.0, -0.5, -2.0]]
SCORED = {"likelihood": OWN, "expert": [[-9.0, -1.0, -9.0]] * 2, "late_fusion": FUSED}


def test_answers_of_an_evaluation_are_put_in_the_order_of_the_classes(tmp_path):
    path = predictions(tmp_path / "p.parquet", {**SCORED, "generate": [[], []]})
    found = room.from_eval(path, CLASSES)
    assert found["truth"].tolist() == [1, 0]
    assert np.stack(found["log_likelihoods"]).tolist() == [[-2.0, -1.0], [-3.5, -3.0]]
    fused = room.from_eval(path, CLASSES, "late_fusion")
    assert np.stack(fused["log_likelihoods"]).tolist() == [[-2.0, -1.0], [-0.5, -3.0]]
    with pytest.raises(UserError, match=r"generate.*expert, late_fusion, likelihood"):
        room.from_eval(path, CLASSES, "generate")
    with pytest.raises(UserError, match="faces of happiness"):
        room.from_eval(path, ("neutral", "anger"))


def test_each_way_of_joining_has_its_row_beside_the_experts_own(root):
    """What lies in the folder is not made again, so nothing is trained here."""
    for way in ("alone", "token"):
        predictions(root / f"mllm/0/eval/{way}/target/predictions.parquet", SCORED)
    bench = SimpleNamespace(root=root, classes=CLASSES)
    models = mllm.Joined(bench, mllm.Budget(), 0, mllm.Given(), lambda *_: None)
    models.measure(["alone", "token"], ["target"])
    found = {row.system: row for row in room.rows_of(root)}
    ways = {f"mllm/{way}{more}" for way in ("alone", "token") for more in ("", "+fusion")}
    assert set(found) == ways | {"mllm/expert alone"}
    assert found["mllm/alone"].war == 0.5  # "anger" is no class here, "happiness" comes next
    assert found["mllm/alone+fusion"].war == 1
    assert found["mllm/expert alone"].war == 0.5
    lines = [json.loads(line) for line in room.json_lines(list(found.values()), "mllm/alone")]
    gains = {line["case"]: line["ours"] - line["rival"] for line in lines}
    assert gains["target/mllm/alone+fusion"] == 0.5


def test_another_expert_has_rows_of_its_own_beside_the_same_model_alone(root):
    for way in ("alone", "text"):
        predictions(root / f"mllm/0/other/eval/{way}/target/predictions.parquet", SCORED)
    bench = SimpleNamespace(root=root, classes=CLASSES)
    given = mllm.Given(root / "expert", "other")
    mllm.Joined(bench, mllm.Budget(), 0, given, lambda *_: None).measure(
        ["alone", "text"], ["target"]
    )
    fused = {"other/mllm/alone+fusion", "other/mllm/text+fusion"}
    own = {"other/mllm/text", "other/mllm/expert alone"}
    assert {row.system for row in room.rows_of(root)} == {"mllm/alone"} | fused | own


def questions(root, *tasks):
    folder = root / "mllm/questions/source"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"answer_weights": dict.fromkeys(tasks)}))


def noting(asked):
    """In place of training: what was asked, by the folder's name."""

    def noted(config, overrides, progress):
        settings = dict(pair.split("=", 1) for pair in overrides)
        out = Path(settings.pop("out"))
        asked[out.name] = (config, settings)
        out.mkdir(parents=True)
        return out

    return noted


def test_an_expert_without_labels_needs_no_verdicts_and_stages_1_and_2_may_be_given(
    root, monkeypatch
):
    asked = {}
    monkeypatch.setattr(mllm, "train", noting(asked))
    questions(root, "expression", "age")
    bench = SimpleNamespace(root=root, classes=CLASSES)
    given = mllm.Given(root / "exp_clip", "other", root / "stage2_vqa")
    models = mllm.Joined(bench, mllm.Budget(), 0, given, lambda *_: None)
    assert models.model("alone") == root / "mllm/0/stage3_alone"
    assert models.model("text") == root / "mllm/0/other/stage3_text"
    assert list(asked) == ["stage3_alone", "stage3_text"]
    for _, settings in asked.values():
        assert settings["init_from"] == str(root / "stage2_vqa")
        assert settings["tasks"] == "{expression: 0.34}"  # no action unit is labelled
    assert "expert.verdicts" not in asked["stage3_text"][1]


def test_stages_of_all_ways_differ_in_the_expert_alone(root, monkeypatch):
    asked = {}
    monkeypatch.setattr(mllm, "train", noting(asked))
    questions(root, "expression", "action_unit")
    (root / "mllm/0").mkdir()
    (root / "mllm/0/verdicts.parquet").touch()
    (root / "expert").mkdir()
    (root / "expert" / mllm.MASK_FER_FILE).touch()
    bench = SimpleNamespace(root=root, classes=CLASSES)
    given = mllm.Given(root / "expert")
    models = mllm.Joined(bench, mllm.Budget((5, 6, 7)), 0, given, lambda *_: None)
    for way in mllm.WAYS:
        models.model(way)
    assert list(asked) == ["stage1", "stage2", "stage3_alone", "stage3_token", "stage3_text"]
    assert [settings["max_steps"] for _, settings in asked.values()] == list("56777")
    plain = asked["stage3_alone"][1]
    for way in ("token", "text"):
        given = asked[f"stage3_{way}"][1]
        changed = {key: given[key] for key in given if plain.get(key) != given[key]}
        verdicts = {"expert.verdicts": str(root / "mllm/0/verdicts.parquet")}
        expected = {"expert.model": str(root / "expert"), f"expert.{way}": "true"}
        assert changed == expected | (verdicts if way == "text" else {})
    for config, settings in asked.values():  # the overrides are what the shipped stages take
        pairs = [f"{k}={v}" for k, v in settings.items()]
        load_yaml_model(config, StageConfig, [*pairs, "out=x"])
