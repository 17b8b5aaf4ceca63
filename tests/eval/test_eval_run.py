"""The whole evaluation on doubles: known truths, baselines, order, schema, files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import eval_doubles as doubles
import numpy as np
import pandas as pd
import pytest

from data_pipeline.records import read_manifest
from eval import run
from eval.table import Faces
from face_mllm.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return doubles.build(tmp_path_factory.mktemp("eval") / "data")


def measure(data: Path, scorer, scorers=("likelihood",), tasks=None, limit=None, **more):
    asking = run.asking_for(read_manifest(data), tasks)
    return run.measure(scorer, data, Faces(data, "test", limit), asking, scorers, **more)


def values(measured, scorer="likelihood"):
    return {
        (e["task"], e["name"], e["metric"]): e for e in measured.results if e["scorer"] == scorer
    }


def test_scorer_that_knows_the_truth_is_perfect(data):
    found = values(measure(data, doubles.Knowing()))
    for (task, _, metric), entry in found.items():
        if metric.startswith("mae"):
            step = 5 if task == "age" else 10
            assert entry["value"] <= step / 2  # only the grid is in the way
        elif entry["value"] is not None:
            assert entry["value"] == 1.0
            assert entry["ci95"] == [1.0, 1.0]
        assert entry["invalid_rate"] == 0


def test_constant_scorer_equals_majority(data):
    table = measure(data, doubles.Knowing()).predictions
    rows = table[(table.scorer == "majority") & (table.kind != "numeric")]
    answers = dict(zip(rows.question, rows.prediction.astype(int), strict=True))
    for (task, name, metric), entry in values(measure(data, doubles.Constant(answers))).items():
        if not metric.startswith("mae"):
            assert entry["value"] == entry["baselines"]["majority"], (task, name, metric)


def test_mean_baseline_is_the_training_mean(data):
    table = measure(data, doubles.Knowing()).predictions
    guess = table[(table.scorer == "majority") & (table.task == "age")].prediction.unique()
    ages = [doubles.labels_of(number)["age"] for number in range(doubles.COUNTS["train"])]
    assert guess == pytest.approx([np.mean(ages)])


def test_linear_probe_finds_linear_labels(data):
    found = values(measure(data, doubles.Noisy()))
    for task, metric in (("expression", "uar"), ("action_unit", "f1_macro")):
        assert found[task, "all", metric]["baselines"]["linear_probe"] >= 0.95
    assert (
        found["zero_shot_attribute", "all", "balanced_accuracy"]["baselines"]["linear_probe"] > 0.9
    )
    assert found["age", "all", "mae"]["baselines"]["linear_probe"] < 2


def test_clip_zero_shot_stands_beside_held_out_attributes(data):
    found = values(measure(data, doubles.Noisy(), clip=doubles.Clip()))
    beside = found["zero_shot_attribute", "smiling", "balanced_accuracy"]["baselines"]
    assert beside["clip_zero_shot"] == 1.0
    assert found["attribute", "beard", "balanced_accuracy"]["baselines"]["clip_zero_shot"] == 0.5
    assert "clip_zero_shot" not in found["action_unit", "AU12", "f1"]["baselines"]
    assert ("attribute", "smiling", "accuracy") not in found


def test_unknown_labels_are_not_counted(data):
    found = values(measure(data, doubles.Noisy()))
    test_numbers = range(84, 114)
    assert found["expression", "all", "uar"]["n"] == sum(n % 5 != 0 for n in test_numbers)
    assert found["attribute", "beard", "accuracy"]["n"] == sum(n % 7 != 0 for n in test_numbers)
    assert found["age", "all", "mae"]["n"] == len(test_numbers)


def test_all_is_the_mean_over_names(data):
    found = values(measure(data, doubles.Noisy()))
    for task, metric, mean in (("action_unit", "f1", "f1_macro"), ("head_pose", "mae", "mae")):
        parts = [
            e["value"] for (t, n, m), e in found.items() if t == task and m == metric and n != "all"
        ]
        assert len(parts) > 1
        assert found[task, "all", mean]["value"] == pytest.approx(np.mean(parts), abs=1e-12)


def test_what_cannot_be_measured_is_null_and_left_out_of_the_mean(tmp_path):
    data = doubles.build(tmp_path / "d", counts={"train": 1, "test": 1})  # one answer a name
    found = values(measure(data, doubles.Knowing()))
    assert found["attribute", "all", "balanced_accuracy"]["value"] is None
    assert found["attribute", "all", "balanced_accuracy"]["ci95"] == [None, None]
    assert found["attribute", "all", "accuracy"]["value"] == 1
    absent = [e for (_, _, metric), e in found.items() if metric == "recall" and not e["n"]]
    assert absent
    assert all(e["value"] is None for e in absent)
    json.dumps(list(found.values()), allow_nan=False)


def test_two_runs_and_any_file_order_agree_to_the_last_digit(data, tmp_path):
    def shuffled(records):
        return [records[i] for i in np.random.default_rng(0).permutation(len(records))]

    other = doubles.build(tmp_path / "shuffled", shuffled)
    first, again, moved = (measure(d, doubles.Noisy()) for d in (data, data, other))
    assert first.results == again.results == moved.results
    pd.testing.assert_frame_equal(first.predictions, moved.predictions)


def test_answers_do_not_depend_on_the_other_faces(data):
    whole = measure(data, doubles.Noisy()).predictions
    some = measure(data, doubles.Noisy(), limit=7).predictions
    model = some[some.scorer == "likelihood"].merge(whole, on=["id", "task", "name", "scorer"])
    assert model.id.nunique() == 7
    assert (model.prediction_x == model.prediction_y).all()


def test_generate_is_read_and_counted(data):
    measured = measure(data, doubles.Knowing(), ("likelihood", "generate"))
    read, scored = values(measured, "generate"), values(measured)
    for key in (("expression", "all", "uar"), ("age", "all", "mae_argmax")):
        assert read[key]["value"] == scored[key]["value"]
        assert read[key]["invalid_rate"] == 0


def test_unreadable_answers_are_wrong_and_reported(data):
    class Mute(doubles.Knowing):
        def generate(self, image, question):
            return "The nose is normal."

    found = values(measure(data, Mute(), ("generate",)), "generate")
    assert found["expression", "all", "war"]["value"] == 0
    assert found["expression", "all", "war"]["invalid_rate"] == 1
    age = found["age", "all", "mae"]
    assert age["value"] == age["baselines"]["majority"]  # scored with the training mean


def test_task_subset_and_its_errors(data):
    found = values(measure(data, doubles.Knowing(), tasks=["age", "expression"]))
    assert {task for task, _, _ in found} == {"age", "expression"}
    with pytest.raises(UserError, match=r"agee .*action_unit"):
        measure(data, doubles.Knowing(), tasks=["agee"])


def test_without_training_faces_there_are_no_label_baselines(tmp_path):
    data = doubles.build(tmp_path / "d", counts={"test": 12})
    measured = measure(data, doubles.Knowing())
    assert all(entry["baselines"] == {} for entry in measured.results)


def test_measuring_val_never_lets_the_probe_choose_on_it(data, monkeypatch):
    seen = {}

    def spy(test, train, select, progress):
        seen.update(test=set(test.table.id), train=set(train.table.id), select=set(select.table.id))
        return real(test, train, select, progress)

    real = run.baselines.linear_probe
    monkeypatch.setattr(run.baselines, "linear_probe", spy)
    asking = run.asking_for(read_manifest(data), None)
    run.measure(doubles.Knowing(), data, Faces(data, "val"), asking)
    assert not seen["test"] & (seen["train"] | seen["select"])
    assert seen["select"]
    assert not seen["select"] & seen["train"]


# --- files and errors, through evaluate


@pytest.fixture
def artifact(monkeypatch, tmp_path):
    import face_mllm.artifact
    import face_mllm.scoring

    chain = [{"stage": "stage3_face", "held_out": list(doubles.HOLDOUT)}]
    bases = SimpleNamespace(vision="v", llm="l", to_json=lambda: {"vision": "v", "llm": "l"})
    described = SimpleNamespace(chain=chain, bases=bases)
    monkeypatch.setattr(face_mllm.artifact, "read_artifact", lambda folder: described)
    loader = classmethod(lambda cls, folder: doubles.Noisy())
    monkeypatch.setattr(face_mllm.scoring.LikelihoodScorer, "from_artifact", loader)
    return tmp_path / "model"


ENTRY = {
    "task": str,
    "name": str,
    "protocol": str,
    "split": str,
    "scorer": str,
    "metric": str,
    "value": (float, type(None)),
    "ci95": list,
    "n": int,
    "invalid_rate": (float, type(None)),
    "baselines": dict,
}


def test_evaluate_writes_the_three_files(data, artifact, tmp_path):
    steps = []
    out = tmp_path / "eval"
    found = run.evaluate(
        artifact, data, out, clip=doubles.Clip(), progress=lambda *step: steps.append(step)
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "predictions.parquet",
        "report.html",
        "results.json",
    ]
    stored = json.loads((out / "results.json").read_text())
    assert stored == found
    assert set(stored) == {"model", "data", "seed", "versions", "results"}
    for entry in stored["results"]:
        assert set(entry) == set(ENTRY)
        assert all(isinstance(entry[key], kind) for key, kind in ENTRY.items())
        assert entry["protocol"] == "double/all"
        low, high = entry["ci95"]
        if low is not None and entry["value"] is not None:
            assert low <= high
    assert {total >= done for done, total, _ in steps} == {True}
    table = pd.read_parquet(out / "predictions.parquet")
    assert set(table.scorer) == {"likelihood", "majority", "linear_probe", "clip_zero_shot"}
    row = table[(table.scorer == "likelihood") & (table.task == "age")].iloc[0]
    assert len(row.choices) == len(row.log_likelihoods) == len(row["values"])
    weights = np.exp(row.log_likelihoods)
    assert row.prediction == pytest.approx(weights @ row["values"] / weights.sum())


def test_a_failure_leaves_nothing_behind(data, artifact, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run, "write_results", broken)
    with pytest.raises(OSError, match="disk full"):
        run.evaluate(artifact, data, tmp_path / "eval", clip=None)
    assert not [path for path in tmp_path.iterdir() if "eval" in path.name]


def test_a_used_folder_is_refused_before_any_work(data, artifact, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="already holds files"):
        run.evaluate(artifact, data, tmp_path / "used", clip=None)
    assert (tmp_path / "used" / "results.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split": "dev"}, r"no split 'dev' .*train, val, test"),
        ({"scorer": "guess"}, r"no scorer 'guess'"),
        ({"limit": 0}, "limit 0"),
        ({"tasks": ["agee"]}, "agee"),
    ],
)
def test_bad_requests_name_the_remedy(data, artifact, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run.evaluate(artifact, data, tmp_path / "eval", clip=None, **more)
    assert not (tmp_path / "eval").exists()


def test_a_folder_that_is_no_artifact(data, tmp_path):
    with pytest.raises(UserError, match=r"stage\.json"):
        run.evaluate(tmp_path, data, tmp_path / "eval")


def test_a_folder_that_is_no_dataset(artifact, tmp_path):
    with pytest.raises(UserError, match="face-mllm data build"):
        run.evaluate(artifact, tmp_path / "nowhere", tmp_path / "eval")


def test_broken_likelihoods_stop_the_run(data):
    class Broken(doubles.Knowing):
        def score(self, image, questions):
            return [np.full(len(choices), math.nan) for _, choices in questions]

    with pytest.raises(UserError, match="not finite"):
        measure(data, Broken())


def test_training_by_another_fold_is_told():
    chain = [
        {"stage": "one"},  # older artifacts do not say
        {"stage": "two", "protocols": {"disfa": "disfa/fold1", "synth": "synth/identity-split"}},
    ]
    measured = {"disfa": "disfa/fold2", "celeba": "celeba/official"}
    (note,) = run.other_protocols(chain, measured)
    assert note.startswith("disfa is measured by disfa/fold2, and stage two was trained on it by")
    assert run.other_protocols(chain, {"disfa": "disfa/fold1"}) == []


def test_zero_shot_means_held_out_by_every_stage():
    chain = [{"held_out": ["smiling", "beard"]}, {"held_out": ["smiling"]}]
    assert run._held_out(chain) == ["smiling"]
    assert run._held_out([{"stage": "x"}]) is None
