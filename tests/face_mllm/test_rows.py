"""Which face and which questions a visit brings: seeded, fresh each epoch, never truncated."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from data_pipeline.records import QA, FaceRecord, load_split
from face_mllm.config import StageConfig
from face_mllm.draws import counts, draw_questions, quotas
from face_mllm.errors import UserError
from face_mllm.rows import COUNTS, FaceRows, RowCollator, model_inputs, split_rows


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


QAS = [QA("attribute", str(i), "?", "no") for i in range(40)] + [QA("age", "all", "?", "35")]


def drawn(shares, limit, turn, face=0, qas=QAS):
    own = np.random.default_rng(face)
    return [qa for answers in draw_questions(qas, shares, limit, own, turn) for qa in answers]


def test_shares_balance_tasks_of_unequal_size():
    """Of one face over its visits and of the visits of many faces alike."""
    shares = {"attribute": 1, "age": 1}
    turns = Counter(qa.task for turn in range(400) for qa in drawn(shares, 1, turn))
    faces = Counter(qa.task for face in range(400) for qa in drawn(shares, 1, 0, face))
    assert turns["age"] / 400 == pytest.approx(0.5, abs=0.01)
    assert faces["age"] / 400 == pytest.approx(0.5, abs=0.08)
    assert {qa.task for qa in drawn({"age": 1}, 9, 0)} == {"age"}


@pytest.mark.parametrize(
    "shares, limit, turns",
    [({}, 12, 4), ({}, 41, 1), ({"attribute": 0.5, "age": 0.5}, 12, 4), ({"age": 1}, 3, 1)],
)
def test_every_question_is_asked_before_any_comes_again(shares, limit, turns):
    """41 questions by 12, or 40 attributes by the 11 places that the one age leaves them."""
    visits = [[(qa.task, qa.name) for qa in drawn(shares, limit, turn)] for turn in range(turns)]
    wanted = {(qa.task, qa.name) for qa in QAS if not shares or qa.task in shares}
    assert {len(visit) for visit in visits} == {min(limit, len(wanted))}
    assert all(len(set(visit)) == len(visit) for visit in visits)
    attributes = [name for visit in visits[:-1] for task, name in visit if task == "attribute"]
    assert len(set(attributes)) == len(attributes)
    assert set().union(*visits) == wanted
    assert drawn(shares, 5, 0, face=1) != drawn(shares, 5, 0, face=2) or shares == {"age": 1}


def test_quotas_fill_up_and_counts_follow_them():
    sizes = {"au": 20, "attribute": 40, "expression": 1}
    wanted = quotas(sizes, {"au": 0.5, "attribute": 0.3, "expression": 0.2}, 9)
    assert wanted == pytest.approx({"au": 5.0, "attribute": 3.0, "expression": 1.0})
    wanted = quotas(sizes, {"au": 0.5, "attribute": 0.4, "expression": 0.1}, 9)
    assert wanted == pytest.approx({"au": 4.5, "attribute": 3.6, "expression": 0.9})
    sums = np.zeros(3)
    for turn in range(300):
        before, now = counts(list(wanted.values()), 0.3, turn)
        assert before == sums.tolist()
        assert sum(now) == 9
        assert all(abs(n - q) < 1 for n, q in zip(now, wanted.values(), strict=True))
        sums += now
    assert sums / 300 == pytest.approx(list(wanted.values()), abs=0.02)


def test_epochs_share_a_face_s_questions_out(make_model, tiny_data):
    _, processor = make_model()
    rows = FaceRows(tiny_data, processor, {}, 1, 512, seed=3, visits=48)
    asked: dict[int, list[str]] = {}
    for visit in range(48):
        picked, _ = rows.drawn(rows.record(visit), visit, rows.face(visit))
        asked.setdefault(rows.face(visit), []).extend(qa.task for qa in picked)
    assert all(sorted(tasks) == ["action_unit", "age"] for tasks in asked.values())
    assert len(asked) == 24


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
    labels = sum(len(item.row.rows) for item in items)
    assert batch["label_weights"].count_nonzero() == len(batch["label_faces"]) == labels
    assert len(batch["label_rows"]) == -(-labels // 32) * 32
    assert batch["input_ids"].shape[1] % 32 == 0
    assert batch["label_rows"].max() < batch["input_ids"].numel()


def test_task_weights_scale_the_loss_of_their_answers(make_model, tiny_data):
    _, processor = make_model()
    plain = FaceRows(tiny_data, processor, {}, 2, 512, seed=3)[0].row
    weighed = FaceRows(tiny_data, processor, {}, 2, 512, seed=3, task_weights={"age": 3.0})[0].row
    asked, _ = FaceRows(tiny_data, processor, {}, 2, 512, seed=3).drawn(
        FaceRecord.from_row(load_split(tiny_data, "train")[0]), 0
    )
    tasks = [qa.task for qa in asked]
    assert set(tasks) == {"action_unit", "age"}
    factors = [3.0 if tasks[group] == "age" else 1.0 for group in plain.groups]
    assert weighed.weights == [w * f for w, f in zip(plain.weights, factors, strict=True)]
    with pytest.raises(ValueError, match="task_weights names"):
        StageConfig(
            stage="s",
            data=tiny_data,
            out="o",
            init_from="x",
            tasks={"age": 1},
            task_weights={"aeg": 2},
        )


def test_packed_batch_counts_what_it_saves(rows):
    items = [rows[k] for k in range(5)]
    batch = RowCollator(0, max_tokens=512)(items)
    assert batch["input_ids"].shape[0] < 5
    counts = dict(zip(COUNTS, batch["counts"].tolist(), strict=True))
    assert counts["faces"] == 5
    assert counts["questions"] == 10
    assert counts["answer_tokens"] == len(batch["label_faces"])
    assert counts["tokens"] == sum(len(item.row.tree) for item in items)
    assert counts["padded_tokens"] == batch["input_ids"].numel()
    prefix = len(rows.processor.prefix_ids())
    branches = sum(
        len(rows.processor.branch_ids(qa.question, qa.answer)[0]) - 1
        for item in items
        for qa in rows.record(item.visit).qa
    )
    assert counts["separate_tokens"] == 10 * prefix + branches


@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_a_batch_add_up_to_its_loss(make_model, rows, size):
    torch.manual_seed(0)
    model, _ = make_model(dtype=torch.float64)
    batch = RowCollator(0)([rows[k] for k in range(5)])
    batch["label_weights"] = batch["label_weights"].double()
    parts = split_rows(batch, size)
    assert len(parts) == -(-5 // size)
    assert all(len(part["label_rows"]) % 32 == 0 for part in parts)
    with torch.no_grad():
        whole = model(**model_inputs(batch)).loss
        losses = [model(**model_inputs(part)).loss for part in parts]
    assert sum(losses).item() == pytest.approx(whole.item(), abs=1e-9)
    faces = [part["visits"][part["label_faces"]] for part in parts]
    assert torch.equal(torch.cat(faces), batch["visits"][batch["label_faces"]])


def test_a_curriculum_chooses_the_face_and_the_visit_the_questions(rows):
    chosen = rows[3, 7]
    assert (chosen.visit, chosen.face) == (3, 7)
    assert rows.record(3, 7).id == FaceRecord.from_row(rows.records[7]).id
    assert rows[3].face == rows.face(3)
