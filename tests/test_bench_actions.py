"""Given features in ``benchmarks/experts run --features``: whose row is whose."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "experts"))

import systems as room
from actions import rows_of_ids

from face_mllm.errors import UserError


class Faces:
    """Names and classes of faces, as the probe asks for them."""

    def __init__(self, names, targets):
        self.names, self.targets = names, torch.tensor(targets)

    def __len__(self):
        return len(self.names)

    def column(self, name):
        return self.names


@pytest.fixture
def bench(tmp_path):
    """Two classes told apart by two of eight features; the file's order is not the sets'."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 90)
    features = rng.normal(size=(90, 8)) * 0.1
    features[np.arange(90), classes] += 3
    order = rng.permutation(90)
    ids = np.array([f"f{row}" for row in order])
    np.savez(tmp_path / "given.npz", ids=ids, features=features[order].astype(np.float32))
    bench = room.Bench(tmp_path, "", tmp_path, {}, given=tmp_path / "given.npz")
    bench.__dict__["classes"] = ("neutral", "happiness")
    bench.__dict__["sets"] = {
        name: Faces([f"f{row}" for row in rows], classes[rows].tolist())
        for name, rows in (("train", range(50)), ("val", range(50, 70)), ("target", range(70, 90)))
    }
    return bench


@pytest.mark.parametrize("head", ["linear_probe", "mlp_head", "probe_inside"])
def test_heads_are_fitted_on_the_features_given(bench, head):
    answer, _ = room.systems(bench)[head]
    found = answer(bench, 0)["target"].argmax(-1)
    assert (found == bench.sets["target"].targets).float().mean() >= 0.9


def test_what_reads_more_than_features_is_left_out(bench):
    assert set(room.systems(bench)) == {"majority", "linear_probe", "mlp_head", "probe_inside"}


def test_a_face_without_features_is_named(bench):
    with pytest.raises(UserError, match="no features of f90 and 1 more"):
        rows_of_ids(bench.given, ["f3", "f90", "f91"])


def test_the_probe_inside_never_sees_the_people_it_is_asked_about(bench):
    """A feature that names the person tells a label that is the person's only if he leaks."""
    faces = bench.sets["target"]
    people = torch.arange(20) % 10
    faces.column = lambda name: people.tolist() if name == "subject" else faces.names
    faces.targets = people % 2
    bench.features = lambda name: torch.eye(10)[people]
    found = room.probe_inside(bench, 0)["target"].argmax(-1)
    assert (found == faces.targets).float().mean() < 0.6
