"""Parts of a large build: chunks, shards, columns of questions, pictures saved anew."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from drawn_builds import drawing, face, write_inputs
from PIL import Image

from data_pipeline.build import build
from data_pipeline.engine import Part, Shard, chunks_of, outcome, plan_shards, shards, split_parts
from data_pipeline.keys import Keys
from data_pipeline.questions.balance import balanced_tasks, count_answers, select, weights_of
from data_pipeline.questions.render import render_questions
from data_pipeline.recipe import load_recipe
from data_pipeline.records import (
    SPLITS,
    batch_of,
    count_faces,
    find_records,
    iter_records,
    iter_rows,
    qa_rows,
    shards_of,
    write_dataset,
)
from data_pipeline.weighing import Weigher
from face_mllm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    write_inputs(root, 400)
    build(root / "r.yaml", root / "whole")
    return root


def test_keys_are_a_set():
    rng = np.random.default_rng(0)
    keys, known = Keys(), set()
    for _ in range(50):
        batch = rng.integers(0, 2000, rng.integers(0, 60), dtype=np.uint64)
        assert keys.has(batch).tolist() == [key in known for key in batch.tolist()]
        first = [
            key not in known and key not in batch[:place].tolist()
            for place, key in enumerate(batch.tolist())
        ]
        assert keys.add(batch).tolist() == first
        known |= set(batch.tolist())
        assert len(keys) == len(known)
    assert len(keys.runs) < 12


def test_shards_take_the_rows_of_a_split_in_order():
    kept = [(0, 0, {"train": 3, "val": 2}), (1, 0, {"val": 4}), (2, 1, {"train": 1, "test": 1})]
    assert list(split_parts(kept, "val")) == [Part(0, 0, 3, 5), Part(1, 0, 0, 4)]
    assert list(plan_shards(split_parts(kept, "val"), "val", 4)) == [
        Shard("val", 0, (Part(0, 0, 3, 5), Part(1, 0, 0, 2))),
        Shard("val", 1, (Part(1, 0, 2, 4),)),
    ]
    assert [s.name for s in plan_shards(split_parts(kept, "test"), "test", 4)] == ["test-00000"]


def test_large_pictures_make_small_chunks_and_row_groups(folder, tmp_path, monkeypatch):
    large = b"x" * 300
    monkeypatch.setattr(outcome, "BYTES_PER_CHUNK", 1000)
    rows = [face(number, image=large) for number in range(9)]
    found = list(chunks_of(iter(rows), 5, 0))
    assert [(chunk.number, len(chunk.rows)) for chunk in found] == [(5, 4), (6, 4), (7, 1)]
    stamps = {chunk.stamp for chunk in chunks_of([*rows[:3], rows[3]], 0, 0)}
    assert stamps == {found[0].stamp}
    monkeypatch.setattr(outcome, "BYTES_PER_CHUNK", 1 << 25)
    monkeypatch.setattr(shards, "BYTES_PER_GROUP", 1 << 14)
    build(folder / "r.yaml", tmp_path / "out")
    paths = [path for split in SPLITS for path in shards_of(tmp_path / "out", split)]
    assert {pq.read_metadata(path).num_row_groups for path in paths} == {1, 2}
    for split in SPLITS:
        rows = list(iter_rows(tmp_path / "out", split))
        assert rows == list(iter_rows(folder / "whole", split))


def test_columns_are_chosen_and_weighed_as_questions_are(folder):
    """Against the same sums question by question, on a part of a column."""
    loaded = load_recipe(folder / "r.yaml", ["sources.0.weight=0.7"])
    records = [
        face(n, qa=tuple(render_questions(face(n).labels, f"s_{n}", 1, "full")) * (n % 5 > 0))
        for n in range(40)
    ]
    rows = batch_of(records).slice(7, 20)
    counts = {}
    for record in records:
        count_answers(counts, record.qa, balanced_tasks(loaded.question_set))
    weights = weights_of(counts)
    weigher = Weigher(loaded, None, folder, "", weights, weights)
    found = list(qa_rows(weigher.weighed(Part(0, 0, 7, 27), "train", rows)))
    for record, qas in zip(records[7:27], found, strict=True):
        kept = select(record.qa, 4, weights, f"3/{record.id}")
        assert [replace(qa, weight=1) for qa in qas] == [replace(qa, weight=1) for qa in kept]
        balance = [weights.get((qa.task, qa.name), {}).get(qa.answer, 1) for qa in kept]
        wanted = [qa.weight * 0.7 * known for qa, known in zip(kept, balance, strict=True)]
        assert [qa.weight for qa in qas] == pytest.approx(wanted, rel=1e-6)
    (same,) = {weigher.weighed(Part(0, 0, 7, 27), "val", rows).equals(rows["qa"])}
    assert same


def test_records_are_found_where_they_are(folder):
    every = list(iter_records(folder / "whole", ["train"]))
    some = {every[number].id for number in (1, 90, 170)}
    found = list(find_records(folder / "whole", "train", some | {"nobody"}))
    assert found == [record for record in every if record.id in some]
    assert count_faces(folder / "whole", "train") == len(every)


# --- pictures saved anew


def sizes(root):
    found = {}
    for record in iter_records(root):
        with Image.open(io.BytesIO(record.image)) as image:
            assert image.format == "JPEG"
            assert not image.getexif()
            assert "comment" not in image.info
            found[record.id] = (image.size, record.box)
    return found


def test_pictures_saved_anew(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010F] = "a camera"
    cut = drawing(3, 600)
    marks = {"landmarks": [[300.0, 450.0], [150.0, 75.0]], "head_pose": {"roll": 3.0}}
    with write_dataset(tmp_path / "faces") as writer:
        writer.add(face(1, image=drawing(1, 600), labels=marks, box=(60.0, 0.0, 300.0, 150.0)))
        writer.add(face(2, image=drawing(2, 600, exif=exif, comment="taken by me")))
        writer.add(face(3, image=cut[: len(cut) // 2]))
        writer.add(face(4, image=drawing(4, 100), box=(1.0, 2.0, 3.0, 4.0)))
    recipe = tmp_path / "r.yaml"
    images = {"reencode": {"side": 224}}
    source = {"source": "records", "root": "faces"}
    recipe.write_text(yaml.safe_dump({"images": images, "sources": [source]}))
    manifest = build(recipe, tmp_path / "out")
    assert manifest["images"] == {"reencode": {"side": 224, "quality": 90}}
    assert manifest["sources"][0]["dropped"]["image unreadable"]["count"] == 1
    found = sizes(tmp_path / "out")
    assert found["s_1"] == ((224, 336), pytest.approx((22.4, 0, 112, 56)))
    assert found["s_2"][0] == (336, 224)
    labels = next(iter_records(tmp_path / "out")).labels
    assert labels == {"landmarks": [[112.0, 168.0], [56.0, 28.0]], "head_pose": {"roll": 3.0}}
    assert found["s_4"] == ((100, 150), (1, 2, 3, 4))
    with pytest.raises(UserError, match=r"unknown key.*sid"):
        build(recipe, tmp_path / "bad", ["images.reencode.sid=3"])
