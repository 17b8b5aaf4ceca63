"""Mixed-order self-paced sampling: what it draws, and that only seed and measurements decide."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from face_mllm.config import CurriculumSettings, StageConfig
from face_mllm.curriculum import STATE_FILE, Curriculum, CurriculumSampler, curriculum_of
from face_mllm.errors import UserError

FACES, EPOCHS = 40, 5
ALONE = SimpleNamespace(num_processes=1)


def measured(curriculum, visit, face, loss, entropy):
    """One visit of two label rows whose means are the given figures."""
    batch = {"visits": torch.tensor([[visit, face]]), "label_faces": torch.tensor([0, 0])}
    outputs = SimpleNamespace(
        label_losses=torch.tensor([loss - 0.1, loss + 0.1]),
        label_entropies=torch.tensor([entropy, entropy]),
    )
    curriculum.measured(batch, outputs, ALONE)


def run(curriculum, ahead=0, stop=FACES * EPOCHS, start=0):
    """Train on made-up losses: a face's number is its loss; read ``ahead`` visits in advance."""
    seen, waiting = [], []
    for visit, face in CurriculumSampler(curriculum):
        if visit < start:
            continue
        seen.append(face)
        waiting.append((visit, face))
        if len(waiting) > ahead:
            visit, face = waiting.pop(0)
            measured(curriculum, visit, face, 1.0 + face, 1.0 + face)
        if len(seen) + start == stop:
            break
    return seen


def make(**changes):
    return Curriculum(CurriculumSettings(**changes), FACES, FACES * EPOCHS, seed=3)


def test_first_epoch_is_plain_and_later_ones_mix_easy_and_hard():
    seen = np.array(run(make())).reshape(EPOCHS, FACES)
    rng = np.random.default_rng((3, 1, 0))
    assert (seen[0] == rng.permutation(FACES)).all()
    for epoch in range(2, EPOCHS):  # every face has been measured by then
        hard = seen[epoch] >= FACES // 2
        share = 0.1 + 0.4 * epoch / EPOCHS
        assert hard.sum() == pytest.approx(share * FACES, abs=1)
        for batch in hard.reshape(4, 10):  # mixed in every batch
            assert batch.sum() == pytest.approx(10 * share, abs=1)
        for half in (seen[epoch][hard], seen[epoch][~hard]):
            counts = [Counter(half.tolist())[face] for face in set(half.tolist())]
            assert max(counts) - min(counts) <= 1
    assert (seen[3] != seen[4]).any()


def test_order_depends_on_seed_and_measurements_only():
    plain = run(make())
    assert run(make()) == plain
    assert run(make(), ahead=7) == plain  # however far the data loader reads ahead
    other = Curriculum(CurriculumSettings(), FACES, FACES * EPOCHS, seed=4)
    assert run(other) != plain


def test_a_reader_too_far_ahead_is_told():
    with pytest.raises(UserError, match="further ahead"):
        run(make(), ahead=FACES)


@pytest.mark.parametrize("stop", [33, 41, 95, 120])
def test_saved_state_goes_on_exactly(tmp_path, stop):
    whole = run(make())
    first = make()
    run(first, stop=stop)
    next(iter(CurriculumSampler(first)))
    first.save(tmp_path)
    second = make()
    second.load(tmp_path)
    assert run(second, start=stop) == whole[stop:]


def test_difficulty_joins_the_ranks_of_loss_and_entropy():
    curriculum = Curriculum(CurriculumSettings(loss_share=0.75, smoothing=0.5), 4, 12, seed=0)
    for visit, (face, loss, entropy) in enumerate([(2, 5.0, 1.0), (0, 3.0, 9.0), (1, 4.0, 2.0)]):
        measured(curriculum, visit, face, loss, entropy)
    curriculum._use_up_to(3)
    # face 3 was never seen: it stands in the middle
    np.testing.assert_allclose(curriculum.difficulty(), [0.25, 0.75 * 0.5 + 0.125, 0.75, 0.5])
    measured(curriculum, 3, 2, 1.0, 1.0)
    curriculum._use_up_to(4)
    assert curriculum.loss[2] == pytest.approx(0.5 * 5 + 0.5 * 1)


def test_passes_without_labels_measure_nothing():
    curriculum = make()
    batch = {"visits": torch.tensor([[0, 5]]), "label_faces": torch.zeros(0, dtype=torch.long)}
    empty = SimpleNamespace(label_losses=torch.zeros(0), label_entropies=torch.zeros(0))
    curriculum.measured(batch, empty, ALONE)
    assert not curriculum.pending


def test_state_of_other_data_or_no_state_is_refused(tmp_path):
    make().save(tmp_path)
    other = Curriculum(CurriculumSettings(), FACES + 1, 100, seed=3)
    with pytest.raises(UserError, match=f"made on {FACES} faces"):
        other.load(tmp_path)
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(UserError, match="no curriculum in it"):
        make().load(tmp_path)


@pytest.mark.parametrize(
    "visits,workers,words", [(40, 0, "second epoch"), (200, 3, "40 faces are too few, 16 are read")]
)
def test_runs_too_short_for_a_curriculum_are_refused_before_training(visits, workers, words):
    stage = StageConfig(
        stage="s",
        data="d",
        out="o",
        init_from="x",
        curriculum={},
        faces_per_device=2,
        workers=workers,
    )
    rows = SimpleNamespace(faces=FACES, visits=visits)
    with pytest.raises(UserError, match=words):
        curriculum_of(stage, rows)
    fitting = stage.model_copy(update={"workers": 0})
    made = curriculum_of(fitting, SimpleNamespace(faces=FACES, visits=200))
    assert (made.faces, made.visits) == (FACES, 200)
