"""Writing datasets of synthetic faces, and their counterfactual pairs."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.records import SPLITS, iter_records, read_manifest
from data_pipeline.synth.counterfactual import FACTORS, aged, pair_of
from data_pipeline.synth.labels import labels_of
from data_pipeline.synth.render import FaceRenderer
from data_pipeline.synth.sample import sample_face
from data_pipeline.synth.spec import generator
from data_pipeline.synth.synthesise import split_counts, synthesise
from face_mllm.errors import UserError

SIZE = 48


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "one"
    calls: list[tuple[int, int, str]] = []
    manifest = synthesise(
        out,
        40,
        5,
        workers=1,
        size=SIZE,
        splits={"train": 24, "val": 8, "test": 8},
        progress=lambda *call: calls.append(call),
    )
    return out, manifest, calls


def test_bytes_do_not_depend_on_the_workers(dataset, tmp_path):
    out, _, _ = dataset
    two = tmp_path / "two"
    synthesise(two, 40, 5, workers=2, size=SIZE, splits={"train": 24, "val": 8, "test": 8})
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (two / name).read_bytes(), name


def test_records_follow_the_contract(dataset):
    out, manifest, calls = dataset
    records = list(iter_records(out))
    assert [record.id for record in records[:2]] == ["synth_5_0000000", "synth_5_0000001"]
    for record in records:
        assert record.source == "synth"
        assert record.subject == record.id
        assert record.licence == "CC0-1.0"
        assert record.open_image().size == (SIZE, SIZE)
    assert calls[-1] == (40, 40, "faces")
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert read_manifest(out) == json.loads(json.dumps(manifest))
    assert manifest["counts"] == {"train": 24, "val": 8, "test": 8}
    assert {"source", "seed", "n", "version", "licence"} <= set(manifest)
    assert "CC0" in (out / "README.md").read_text() or "cc0" in (out / "README.md").read_text()


def test_identities_are_disjoint_between_splits(dataset):
    out, _, _ = dataset
    people: dict[str, str] = {}
    for record in iter_records(out):
        shape = json.dumps(record.labels["parameters"]["local"])
        assert people.setdefault(shape, record.split) == record.split
    assert len(people) == 40


def test_labels_on_disk_are_those_of_the_spec(dataset):
    out, _, _ = dataset
    record = next(iter_records(out, ["val"]))
    spec = sample_face(5, int(record.id.rsplit("_", 1)[1]), "val")
    assert record.labels == json.loads(json.dumps(labels_of(spec)))


@pytest.mark.parametrize(
    ("n", "splits", "expected"),
    [
        (10, {"train": 0.8, "val": 0.1, "test": 0.1}, (8, 1, 1)),
        (7, {"train": 0.5, "test": 0.5}, (4, 0, 3)),
        (3, {"test": 3}, (0, 0, 3)),
        (1, {"train": 1.0}, (1, 0, 0)),
    ],
)
def test_split_counts_add_up(n, splits, expected):
    counts = split_counts(n, splits)
    assert tuple(counts[name] for name in SPLITS) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "0 faces"),
        ({"seed": -1}, "negative"),
        ({"workers": 0}, "0 workers"),
        ({"splits": {"dev": 1.0}}, "not usable"),
        ({"splits": {"train": 0.5}}, "sum to 0.5"),
        ({"size": 4}, "not between"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, arguments, message):
    given = {"n": 4, "seed": 0, "size": SIZE, **arguments}
    with pytest.raises(UserError, match=message):
        synthesise(tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_occupied_folder_is_refused(dataset):
    out, _, _ = dataset
    with pytest.raises(UserError, match="already holds files"):
        synthesise(out, 4, 0, size=SIZE)


# --- counterfactual pairs


def changed_fields(first, second) -> set[str]:
    names = {field.name for field in dataclasses.fields(first)}
    return {n for n in names if getattr(first, n) != getattr(second, n)} - {"changed"}


ALLOWED = {
    "eyeglasses": {"glasses"},
    "wearing_hat": {"hat"},
    "beard": {"beard"},
    "yaw": {"yaw"},
    "age": {"age", "anny_age", "wrinkles", "age_spots", "eye_shade", "local"},
}


def test_pairs_differ_in_one_factor():
    factors = set()
    for index in range(80):
        first, second = pair_of(sample_face(2, index))
        assert first.factor == second.factor
        assert (first.changed, second.changed) == (False, True)
        allowed = ALLOWED.get(first.factor, {"actions"})
        assert changed_fields(first, second) <= allowed
        assert changed_fields(first, second)
        factors.add(first.factor)
    assert {"eyeglasses", "wearing_hat", "age", "yaw", "AU12"} <= factors


def test_unit_pairs_differ_in_that_unit():
    for index in range(60):
        twin = FACTORS["unit"](sample_face(4, index), generator(4, index, 3))
        unit, changed = twin
        before = labels_of(sample_face(4, index))["action_units"]
        after = labels_of(changed)["action_units"]
        others = {k for k in before if before[k] != after[k]} - {unit}
        assert before[unit] != after[unit]
        assert others <= {"AU25"}  # raising the upper lip parts the lips


def test_ageing_twice_is_ageing_once():
    spec = sample_face(2, 3)
    there_and_back = aged(aged(spec, 80.0), spec.age)
    assert there_and_back.age == spec.age
    assert there_and_back.anny_age == pytest.approx(spec.anny_age)
    assert there_and_back.local["head_age"] == pytest.approx(spec.local["head_age"])


def test_pairs_share_their_subject(tmp_path):
    manifest = synthesise(
        tmp_path / "pairs", 6, 9, workers=1, size=SIZE, counterfactual=True, splits={"test": 1.0}
    )
    records = list(iter_records(tmp_path / "pairs"))
    assert manifest["counts"]["test"] == len(records) == 12
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert first.subject == second.subject
        assert first.id != second.id
        factor = first.labels["parameters"]["counterfactual"]
        assert factor == second.labels["parameters"]["counterfactual"]


def test_pairs_differ_in_the_picture():
    renderer = FaceRenderer(size=SIZE)
    pairs = [pair_of(sample_face(6, index)) for index in range(12)]
    images = renderer.render([spec for pair in pairs for spec in pair]).astype(float)
    for first, second in zip(images[::2], images[1::2], strict=True):
        assert 0 < np.abs(first - second).mean() < 60
