"""Which face and which questions a visit brings: seeded, fresh each epoch, never truncated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_pipeline.records import QA
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.rows import FaceRows, RowCollator, draw_questions


@pytest.fixture
def rows(make_model, tiny_data):
    _, processor = make_model()
    return FaceRows(tiny_data, processor, {}, 2, 512, seed=3, visits=72)


def test_every_epoch_visits_each_face_once_in_a_new_order(rows):
    epochs = [[rows.record(24 * epoch + k).id for k in range(24)] for epoch in range(3)]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_visit_depends_on_its_number_alone(rows):
    late, early = rows[60], rows[5]
    again = rows[60]
    assert late[0].tree.ids == again[0].tree.ids
    assert (late[1] == again[1]).all()
    assert early[0].tree.ids


def test_stage_length_covers_all_steps(make_model, tiny_data):
    _, processor = make_model()
    base = {"stage": "s", "data": tiny_data, "out": "o", "init_from": "x"}
    steps = StageConfig(**base, max_steps=50, faces_per_device=4, accumulation=2)
    assert len(FaceRows.from_stage(steps, processor)) == 400
    epochs = StageConfig(**base, epochs=2.5)
    assert len(FaceRows.from_stage(epochs, processor)) == 60


def test_shares_balance_tasks_of_unequal_size():
    qas = [QA("attribute", str(i), "?", "no") for i in range(40)] + [QA("age", "all", "?", "35")]
    rng = np.random.default_rng(0)
    drawn = Counter(
        qa.task
        for _ in range(400)
        for qa in draw_questions(qas, {"attribute": 1, "age": 1}, 1, rng)
    )
    assert drawn["age"] / 400 == pytest.approx(0.5, abs=0.08)
    assert {qa.task for qa in draw_questions(qas, {"age": 1}, 9, rng)} == {"age"}


def test_long_rows_lose_questions_never_image_tokens(make_model, tiny_data):
    _, processor = make_model()
    prefix = len(processor.prefix_ids())
    rows = FaceRows(tiny_data, processor, {}, 2, prefix + 60, seed=0)
    tree = rows[0][0].tree
    assert len(tree) <= prefix + 60
    assert tree.ids.count(processor.image_token_id) == processor.image_tokens
    with pytest.raises(UserError, match="leaves no room"):
        FaceRows(tiny_data, processor, {}, 2, prefix, seed=0)
    with pytest.raises(UserError, match=r"needs \d+ tokens"):
        FaceRows(tiny_data, processor, {}, 2, prefix + 16, seed=0)[0]


def test_collator_keeps_every_label_of_every_face(rows):
    items = [rows[k] for k in range(3)]
    batch = RowCollator(0)(items)
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    labels = sum(len(row.rows) for row, _ in items)
    assert batch["label_weights"].count_nonzero() == labels
    assert len(batch["label_rows"]) == -(-labels // 32) * 32
    assert batch["input_ids"].shape[1] % 32 == 0
    assert batch["label_rows"].max() < batch["input_ids"].numel()
