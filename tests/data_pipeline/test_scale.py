"""Builds in many processes, on Ray, killed and gone on with: always the same bytes."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from data_pipeline.build import build
from data_pipeline.engine import (
    BuildStoppedError,
    Part,
    Shard,
    make_engine,
    plan_shards,
    split_parts,
)
from data_pipeline.keys import Keys
from data_pipeline.preparing import Preparer
from data_pipeline.records import FaceRecord, iter_records, write_dataset
from data_pipeline.weighing import Weigher
from face_mllm.errors import UserError

FACES = 600  # 5 chunks


def drawing(number, side=40, **save):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side * 3 // 2), Image.Resampling.BICUBIC).save(buffer, "JPEG", **save)
    return buffer.getvalue()


PICTURES = [drawing(number) for number in range(8)]


def face(number, **changes):
    settings = {
        "id": f"s_{number}",
        "source": "s",
        "split": ("train", "train", "val", "test")[number % 4],
        "subject": f"p{number}",
        "image": PICTURES[number % 8] if number % 9 else b"broken",
        "labels": {
            "expression": ("neutral", "happiness", "fear")[number % 3],
            "attributes": {"beard": number % 5 == 0, "smiling": number % 2 == 0},
            "age": 20.0 + number % 50,
            "head_pose": {"yaw": (number * 7) % 61 - 30.5},
        },
    }
    return FaceRecord(**{**settings, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scale")
    with write_dataset(root / "faces") as writer:
        for number in range(FACES):
            writer.add(face(number))
    content = {
        "seed": 3,
        "rows_per_shard": 100,
        "max_questions_per_face": 4,
        "sources": [{"source": "records", "root": "faces"}],
    }
    (root / "r.yaml").write_text(yaml.safe_dump(content))
    few = {"source": "records", "root": "faces", "take": "first:20"}
    (root / "few.yaml").write_text(yaml.safe_dump({**content, "sources": [few]}))
    return root


@pytest.fixture(scope="module")
def whole(folder):
    """The build nobody disturbed."""
    build(folder / "r.yaml", folder / "whole")
    return digests(folder / "whole")


def digests(root):
    """Hashes of all files; the card holds the name of the folder."""
    files = (path for path in root.iterdir() if path.name != "README.md")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- engines


def test_more_workers_write_the_same_bytes(folder, whole):
    build(folder / "r.yaml", folder / "three", workers=3)
    assert digests(folder / "three") == whole


def test_the_first_faces_are_the_first_whoever_is_quicker(folder):
    build(folder / "few.yaml", folder / "few1")
    manifest = build(folder / "few.yaml", folder / "few3", workers=3)
    assert digests(folder / "few1") == digests(folder / "few3")
    (source,) = manifest["sources"]
    assert source["kept"] == {"train": 20, "val": 20, "test": 20}
    dropped = sum(entry["count"] for entry in source["dropped"].values())
    assert source["rows_read"] == FACES == 60 + dropped + source["rows_not_taken"]


def test_ray_writes_the_same_bytes(folder, whole):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'face-mllm[ray]'")
    build(folder / "r.yaml", folder / "ray", workers=2, engine="ray")
    assert digests(folder / "ray") == whole


def test_without_ray_the_remedy_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray Data.*pip install 'face-mllm\[ray\]'"):
        build(folder / "r.yaml", folder / "x", engine="ray")
    with pytest.raises(UserError, match=r"no engine 'spark'.*local, ray"):
        build(folder / "r.yaml", folder / "x", engine="spark")
    assert not list(folder.glob("*x*"))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_that_of_the_first_bad_row(folder, tmp_path, workers):
    with write_dataset(tmp_path / "faces") as writer:
        for number in range(300):
            writer.add(face(number if number != 290 else 3, split="train"))
    root = f"sources.0.root={tmp_path / 'faces'}"
    with pytest.raises(UserError) as caught:
        build(folder / "r.yaml", tmp_path / "o", [root], workers=workers)
    assert caught.value.message == "id 's_3' occurs twice"
    assert "different `name:`" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_results_keep_the_order_of_the_jobs_and_little_is_read_ahead():
    taken = []

    def jobs():
        for number in range(30):
            taken.append(number)
            yield number

    with make_engine("local", 2) as engine:
        for done, (job, result) in enumerate(engine.run(str, jobs()), 1):
            assert result == str(job) == str(done - 1)
            assert len(taken) - done < 4


def test_a_worker_that_dies_stops_the_build_for_now():
    with (
        pytest.raises(BuildStoppedError, match=r"ended unexpectedly.*fewer --workers"),
        make_engine("local", 2) as engine,
    ):
        list(engine.run(os._exit, iter([3, 3, 3])))


# --- killed and gone on with

CHILD = """
import multiprocessing, os, signal, sys
from data_pipeline.build import build

def kill(done, total, text):
    if text == sys.argv[3] and done >= int(sys.argv[4]):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2], progress=kill, workers=int(sys.argv[5]))
"""


def killed(folder, out, text, done, workers=1):
    """Build in a process that is killed at some point; return the processes it had started."""
    script = folder / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, script, folder / "r.yaml", out, text, str(done), str(workers)]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not out.exists()
    return [int(pid) for pid in ended.stdout.split()]


@pytest.fixture
def work_done(monkeypatch):
    """Count the chunks prepared and the faces weighed from now on."""
    done = {"chunks": 0, "weighed": 0}
    prepare, weighed = Preparer.prepare, Weigher.weighed

    def counted_prepare(self, chunk):
        done["chunks"] += 1
        return prepare(self, chunk)

    def counted_weighed(self, part, split, rows):
        done["weighed"] += len(rows)
        return weighed(self, part, split, rows)

    monkeypatch.setattr(Preparer, "prepare", counted_prepare)
    monkeypatch.setattr(Weigher, "weighed", counted_weighed)
    return done


@pytest.mark.parametrize(
    ("text", "done", "chunks", "weighed"), [("reading", 200, 3, 533), ("writing", 250, 0, 267)]
)
def test_a_killed_build_goes_on_where_it_stopped(
    folder, whole, work_done, text, done, chunks, weighed
):
    out = folder / f"killed-{text}"
    killed(folder, out, text, done)
    build(folder / "r.yaml", out)
    assert digests(out) == whole
    assert work_done == {"chunks": chunks, "weighed": weighed}  # 533 faces, 266 in whole shards
    assert not list(folder.glob(".killed*"))


def test_workers_end_with_a_killed_build(folder, whole):
    out = folder / "killed-many"
    workers = killed(folder, out, "reading", 200, workers=2)
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, workers))
    build(folder / "r.yaml", out)
    assert digests(out) == whole


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_another_recipe_starts_anew(folder, whole):
    out = folder / "changed"
    killed(folder, out, "reading", 200)
    build(folder / "r.yaml", out, ["seed=4"])
    build(folder / "r.yaml", folder / "fresh", ["seed=4"])
    assert digests(out) == digests(folder / "fresh") != whole


def test_stopped_by_the_keyboard_it_can_go_on_too(folder, whole, work_done):
    def stop(done, total, text):
        if done >= 200:
            raise KeyboardInterrupt

    out = folder / "stopped"
    with pytest.raises(KeyboardInterrupt):
        build(folder / "r.yaml", out, progress=stop)
    assert (folder / ".stopped.partial").is_dir()
    work_done["chunks"] = 0
    build(folder / "r.yaml", out)
    assert digests(out) == whole
    assert work_done["chunks"] == 3


def test_two_builds_of_one_folder_do_not_meet(folder):
    (folder / ".busy.partial").mkdir()
    with FileLock(folder / ".busy.partial" / "lock"):
        with pytest.raises(UserError, match="busy: another process builds it"):
            build(folder / "r.yaml", folder / "busy")
        assert (folder / ".busy.partial").is_dir()


# --- parts


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
