"""Builds in many processes, on Ray, killed and gone on with: always the same bytes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from drawn_builds import PICTURES, digests, face, write_inputs
from filelock import FileLock

from data_pipeline.build import build
from data_pipeline.engine import (
    BuildStoppedError,
    make_engine,
)
from data_pipeline.preparing import Preparer
from data_pipeline.records import (
    write_dataset,
)
from data_pipeline.weighing import Weigher
from face_mllm.errors import UserError

FACES = 600  # 5 chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scale")
    write_inputs(root, FACES)
    return root


@pytest.fixture(scope="module")
def whole(folder):
    """The build nobody disturbed."""
    build(folder / "r.yaml", folder / "whole")
    return digests(folder / "whole")


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


def test_pictures_mended_after_a_kill_are_read_again(folder, tmp_path, work_done):
    """They need not lie under the source's root, so nothing else would tell."""
    lines = ["image,expression"]
    (tmp_path / "pictures").mkdir()
    for number in range(300):
        path = tmp_path / "pictures" / f"{number}.jpg"
        path.write_bytes(PICTURES[number % 8] if number else b"broken")
        lines.append(f"{path.name},{('sad', 'happy')[number % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    columns = {"image": "image", "expression": "expression"}
    source = {"source": "table", "root": "t.csv", "columns": columns, "images": "pictures"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    killed(tmp_path, tmp_path / "out", "writing", 1)
    (tmp_path / "pictures" / "0.jpg").write_bytes(PICTURES[0])
    build(tmp_path / "r.yaml", tmp_path / "out")
    assert work_done == {"chunks": 1, "weighed": 300}
    build(tmp_path / "r.yaml", tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


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
