import hashlib
import io
import json
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_pipeline.build import build
from data_pipeline.labels import find_leaks
from data_pipeline.manifest import summary
from data_pipeline.questions import QuestionSet
from data_pipeline.recipe import RECIPES, load_recipe
from data_pipeline.records import FEATURES, FaceRecord, iter_records, write_dataset
from face_mllm.errors import UserError

HELD = ["smiling", "mouth_open", "blond_hair", "eyes_closed"]


def picture(number, side=40):
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def face(number, **changes):
    rng = random.Random(number)
    labels = {
        "expression": rng.choice(["neutral", "happiness", "fear"]),
        "action_units": {
            "AU1": rng.uniform(0, 5),
            "AU12": 0.0 if number % 20 else 5.0,
            "AU43": 4.0,
        },
        "attributes": {"beard": rng.random() < 0.3, "smiling": rng.random() < 0.5},
        "age": 20.0 + number % 50,
        "head_pose": {"yaw": rng.uniform(-30, 30)},
    }
    split = ("train", "train", "train", "val", "test")[number % 5]
    settings = {
        "id": f"s_{number}",
        "source": "s",
        "split": split,
        "subject": f"p{number}",
        "image": picture(number),
        "labels": labels,
        "licence": "CC0",
    }
    return FaceRecord(**{**settings, **changes})


@pytest.fixture
def folder(tmp_path):
    with write_dataset(tmp_path / "faces") as writer:
        for number in range(100):
            writer.add(face(number))
    return tmp_path


def recipe(folder, name="r.yaml", **changes):
    content = {"seed": 3, "sources": [{"source": "records", "root": "faces"}], **changes}
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def digests(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}


def test_a_build_is_whole_and_readable_by_datasets(folder):
    calls = []
    manifest = build(
        recipe(folder, holdout_attributes=HELD),
        folder / "out",
        progress=lambda done, total, text: calls.append((done, total, text)),
    )
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        "train-00000.parquet",
        "val-00000.parquet",
        "test-00000.parquet",
        "manifest.json",
        "README.md",
    }
    assert json.loads((folder / "out" / "manifest.json").read_text()) == manifest
    assert {s: manifest["splits"][s]["faces"] for s in manifest["splits"]} == {
        "train": 60,
        "val": 20,
        "test": 20,
    }
    train = datasets.Dataset.from_parquet(
        str(folder / "out" / "train-00000.parquet"), cache_dir=str(folder / "cache")
    )
    assert train.features == FEATURES
    assert train[0]["image"].size == (40, 40)
    assert len(train) == 60
    assert calls[-1] == (100, 100, "writing")
    assert {path.name for path in folder.iterdir()} == {"faces", "out", "r.yaml", "cache"}
    assert "train" in summary(manifest)


def test_the_manifest_says_what_a_review_would_ask(folder):
    manifest = build(recipe(folder, holdout_attributes=["Smiling"]), folder / "out")
    assert manifest["holdout_attributes"] == ["smiling"]
    assert manifest["leak_check"]["leaks"] == 0
    assert manifest["leak_check"]["texts_checked"] > 1000
    assert "grin" in manifest["leak_check"]["held_out"]["smiling"]
    (source,) = manifest["sources"]
    assert (source["protocol"], source["rows_read"], source["licences"]) == (
        "records/as-built",
        100,
        {"CC0": 100},
    )
    assert len(source["fingerprint"]) == 16
    assert QuestionSet.from_manifest(manifest).hash == manifest["template_hash"]
    train = manifest["splits"]["train"]
    assert sum(train["labels"]["expression"].values()) == train["faces"] == train["subjects"]
    assert sum(train["labels"]["attributes"]["smiling"].values()) == 60  # a label, never a question
    ages = [r.labels["age"] for r in iter_records(folder / "out", ["train"])]
    assert train["labels"]["age"]["mean"] == pytest.approx(np.mean(ages), abs=1e-3)
    assert train["labels"]["age"]["std"] == pytest.approx(np.std(ages), abs=1e-3)
    card = (folder / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert [f["split"] for f in front["configs"][0]["data_files"]] == [
        "train",
        "validation",
        "test",
    ]


@pytest.mark.parametrize("cap", [None, 5])
def test_same_inputs_and_seed_give_the_same_bytes(folder, cap):
    path = recipe(folder, holdout_attributes=HELD, max_questions_per_face=cap)
    build(path, folder / "one")
    build(path, folder / "two")
    one, two = digests(folder / "one"), digests(folder / "two")
    one.pop("README.md"), two.pop("README.md")
    assert one == two
    build(path, folder / "three", ["seed=4"])
    assert digests(folder / "three")["train-00000.parquet"] != one["train-00000.parquet"]


def test_yes_and_no_weigh_the_same_and_the_mean_is_one(folder):
    build(recipe(folder), folder / "out")
    totals, counts = {}, {}
    for record in iter_records(folder / "out", ["train"]):
        for qa in record.qa:
            if qa.task in ("attribute", "action_unit", "expression"):
                key = (qa.task, qa.name)
                totals.setdefault(key, {}).setdefault(qa.answer, []).append(qa.weight)
                counts[key] = counts.get(key, 0) + 1
            else:
                assert qa.weight == 1.0
    for key, answers in totals.items():
        sums = [sum(weights) for weights in answers.values()]
        assert sum(sums) == pytest.approx(counts[key], rel=1e-5), key
        if max(max(weights) for weights in answers.values()) < 4:
            assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-5), key
    assert max(totals[("action_unit", "AU12")]["mouth corners up"]) == pytest.approx(4.0)


def test_held_out_splits_carry_no_weights(folder):
    build(recipe(folder), folder / "out")
    weights = {qa.weight for r in iter_records(folder / "out", ["val", "test"]) for qa in r.qa}
    assert weights == {1.0}


def test_a_cap_leaves_balanced_weights_over_what_is_kept(folder):
    manifest = build(recipe(folder, max_questions_per_face=4), folder / "out")
    kept = list(iter_records(folder / "out", ["train"]))
    assert {len(record.qa) for record in kept} == {4}
    assert manifest["splits"]["train"]["questions"] == 240
    beards = [qa for r in kept for qa in r.qa if qa.name == "beard"]
    assert sum(qa.weight for qa in beards) == pytest.approx(len(beards), rel=1e-5)
    assert len(next(iter_records(folder / "out", ["val"])).qa) > 4


def test_no_text_mentions_what_is_held_out(folder):
    build(recipe(folder, holdout_attributes=HELD, questions="full"), folder / "out")
    texts = {
        text
        for record in iter_records(folder / "out")
        for qa in record.qa
        for text in (qa.question, qa.answer, record.caption, *qa.choices)
    }
    assert len(texts) > 100
    assert find_leaks(texts, HELD) == []


def test_a_template_that_leaks_stops_the_build(folder):
    words = {"wordings": ["Age, smiling or not?"], "answers": ["{answer}"]}
    content = {"forms": ["age/years"], "templates": {"age/years": words}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    path = recipe(folder, questions="mine.yaml", holdout_attributes=["smiling"])
    assert sum(s["questions"] for s in build(path, folder / "o")["splits"].values()) == 0
    content["templates"]["age/years"] = {"wordings": ["Age?"], "answers": ["{answer}, grinning"]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="'grinning', which gives the held-out attribute 'smiling'"):
        build(path, folder / "out")
    assert not (folder / "out").exists()


def test_a_sources_own_captions_lose_those_that_leak(folder):
    with write_dataset(folder / "told") as writer:
        writer.add(face(0, caption="a man with a broad smile"))
        writer.add(face(1, caption="a man with a hat"))
    path = recipe(
        folder,
        sources=[{"source": "records", "root": "told"}],
        holdout_attributes=["smiling"],
    )
    manifest = build(path, folder / "out")
    assert manifest["leak_check"]["captions_removed"] == 1
    assert [r.caption for r in iter_records(folder / "out")] == ["", "a man with a hat"]


def test_take_and_tasks_and_weight(folder):
    sources = [
        {"source": "records", "root": "faces", "take": "first:7", "tasks": ["age"], "weight": 0.5}
    ]
    manifest = build(recipe(folder, sources=sources), folder / "out")
    assert {s: v["faces"] for s, v in manifest["splits"].items()} == {
        "train": 7,
        "val": 7,
        "test": 7,
    }
    assert manifest["sources"][0]["rows_not_taken"] == 79
    train = next(iter_records(folder / "out", ["train"]))
    assert [(qa.task, qa.weight) for qa in train.qa] == [("age", 0.5)]
    assert train.caption == ""
    sources[0]["take"] = "random:30%"
    some = build(recipe(folder, sources=sources), folder / "some")
    assert 15 <= sum(s["faces"] for s in some["splits"].values()) <= 45


def test_unreadable_missing_tiny_and_malformed_rows_are_dropped_and_counted(folder):
    with write_dataset(folder / "mixed") as writer:
        writer.add(face(0))
        writer.add(face(1, image=b"\xff\xd8 broken"))
        writer.add(face(2, image=str(folder / "gone.jpg")))
        writer.add(face(5, image=picture(5, side=8)))
        writer.add(face(6, labels={"age": 500}))
        writer.add(face(7, labels={"age": 25, "age_band": "30-39"}))
    path = recipe(folder, sources=[{"source": "records", "root": "mixed"}])
    manifest = build(path, folder / "out")
    dropped = manifest["sources"][0]["dropped"]
    assert {reason: of["count"] for reason, of in dropped.items()} == {
        "image unreadable": 1,
        "image file missing": 1,
        "image smaller than 16 px": 1,
        "labels: age: 500 is not a number within 0 to 130": 1,
        "labels contradict each other: age and age_band": 1,
    }
    assert dropped["image unreadable"]["examples"] == ["s_1"]


def test_nothing_left_is_an_error_with_reasons(folder):
    with write_dataset(folder / "bad") as writer:
        writer.add(face(1, image=b"broken"))
    path = recipe(folder, sources=[{"source": "records", "root": "bad"}])
    with pytest.raises(
        UserError, match=r"1 rows read, none kept: 1 x image unreadable \(e.g. s_1\)"
    ):
        build(path, folder / "out")
    assert {p.name for p in folder.iterdir()} == {"faces", "bad", "r.yaml"}


def test_a_person_in_two_splits_stops_the_build(folder):
    with write_dataset(folder / "leaky") as writer:
        writer.add(face(0, subject="p"))
        writer.add(face(3, subject="p"))
    path = recipe(folder, sources=[{"source": "records", "root": "leaky"}])
    with pytest.raises(UserError, match="subject 'p' of s is in both train and val"):
        build(path, folder / "out")
    assert not (folder / "out").exists()


def test_one_id_twice_stops_the_build(folder):
    twice = [{"source": "records", "root": "faces"}] * 2
    with pytest.raises(UserError, match="id 's_0' occurs twice"):
        build(recipe(folder, sources=twice), folder / "out")


def test_images_by_link_or_embedded(folder):
    (folder / "a.jpg").write_bytes(picture(1))
    (folder / "t.csv").write_text("image,emo\na.jpg,happy\n")
    table = {"source": "table", "root": "t.csv", "columns": {"image": "image", "expression": "emo"}}
    build(recipe(folder, sources=[table]), folder / "embedded")
    build(recipe(folder, sources=[table], images="link"), folder / "linked")
    assert next(iter_records(folder / "embedded")).image == picture(1)
    assert next(iter_records(folder / "linked")).image == str(folder / "a.jpg")


def test_an_existing_folder_is_left_alone(folder):
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="already holds files"):
        build(recipe(folder), folder / "out")
    assert (folder / "out" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"holdout": []}, "unknown key 'holdout'.*holdout_attributes"),
        ({"questions": "compac"}, "no such question set"),
        ({"sources": [{"source": "rafbd", "root": "faces"}]}, "unknown source 'rafbd'"),
        ({"sources": [{"source": "records", "root": "face"}]}, "root face does not exist"),
        (
            {"sources": [{"source": "records", "root": "faces", "tak": "all"}]},
            "did you mean 'take'",
        ),
        ({"sources": [{"source": "records", "root": "faces", "take": "half"}]}, "first:N"),
        ({"sources": [{"source": "records", "root": "faces", "tasks": ["aus"]}]}, "no task 'aus'"),
        ({"sources": [{"source": "records", "root": "faces", "protocol": "x"}]}, "no protocol 'x'"),
        ({"sources": [{"source": "table", "root": "faces"}]}, "'columns' is missing"),
        (
            {"sources": [{"source": "table", "root": "faces", "columns": {"imag": "x"}}]},
            "unknown key 'columns.imag'.*'image'",
        ),
        (
            {"sources": [{"source": "table", "root": "faces", "colums": {}}]},
            "did you mean 'columns'",
        ),
        ({"sources": []}, "sources"),
        ({"seed": "x"}, "'seed' is 'x'.*whole number"),
        ({"max_questions_per_face": 0}, "max_questions_per_face"),
        ({"holdout_attributes": ["smilng"]}, "no attribute 'smilng': did you mean 'smiling'"),
        ({"holdout_attributes": ["odd_thing"]}, "no face is labelled 'odd_thing'"),
    ],
)
def test_a_broken_recipe_is_one_line_with_the_remedy(folder, changes, said):
    with pytest.raises(UserError, match=said):
        build(recipe(folder, **changes), folder / "out")
    assert not (folder / "out").exists()


def test_overrides_and_roots_beside_the_recipe(folder, monkeypatch):
    (folder / "deep").mkdir()
    path = recipe(folder, "deep/r.yaml")
    with pytest.raises(UserError, match="root faces does not exist"):
        load_recipe(path)
    loaded = load_recipe(path, ["sources.0.root=../faces", "expression_classes=canonical8"])
    assert len(loaded.question_set.classes) == 8
    monkeypatch.chdir(folder)
    assert load_recipe(path).sources[0].root.samefile(folder / "faces")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_builds(folder, path):
    manifest = build(path.stem, folder / "out", [f"sources.0.root={folder / 'faces'}"])
    assert manifest["splits"]["train"]["questions"] > 100
    assert manifest["holdout_attributes"] == HELD


EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.yaml"))


def plant_example_inputs(root):
    (root / "real_faces").mkdir(parents=True)
    bytes_ = [{"bytes": picture(i), "path": None} for i in range(10)]
    common = {"image": bytes_, "split": ["train"] * 8 + ["val"] * 2}
    gender = {"gender": ["Male", "Female"] * 5}
    tables = {
        "fairface": {**gender, "age_band": ["20-29", "more than 70"] * 5},
        "portrait": {**gender, "birth_year": [1950 + i for i in range(10)]},
        "mux": {"expression": ["neutral", "sadness"] * 5, "subject": list("abcdefghij")},
    }
    for name, columns in tables.items():
        ids = [f"{name}_{i}" for i in range(10)]
        path = root / "real_faces" / f"{name}.parquet"
        pq.write_table(pa.table({"id": ids, **common, **columns}), path)
    (root / "llava").mkdir()
    (root / "llava" / "1.jpg").write_bytes(picture(1))
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A tree."}]
    talk = json.dumps([{"id": "1", "image": "1.jpg", "conversations": turns}])
    (root / "llava" / "llava_v1_5_mix665k.json").write_text(talk)
    for number in range(40):
        path = root / "faces" / ("happy", "sad")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_recipe_builds_from_files_of_the_shape_it_describes(tmp_path, path):
    plant_example_inputs(tmp_path)
    copied = tmp_path / path.name
    copied.write_text(path.read_text())
    manifest = build(copied, tmp_path / "out")
    assert manifest["splits"]["train"]["questions"] > 0
    assert sum(entry["dropped"] != {} for entry in manifest["sources"]) == 0
