"""The doctor: what it finds, what it tells, and its exit code."""

import json

import pytest

from face_mllm import doctor
from face_mllm.cli import main
from face_mllm.doctor import Finding


def finding(findings, name) -> Finding:
    return next(found for found in findings if found.name == name)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A cold cache and no wish to be offline."""
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_installed_packages_are_in_range():
    found = finding(doctor.packages(), "packages")
    assert found.state == "ok"
    assert "torch 2" in found.value


def test_missing_and_old_packages_have_their_command(monkeypatch):
    have = {"torch": "1.0", "peft": None}
    monkeypatch.setattr(doctor, "_version", lambda name: have.get(name, "6.0"))
    monkeypatch.setattr(doctor, "requires", lambda _name: ["torch>=2.6", "peft>=0.21", "rich>=5"])
    found = list(doctor.packages())
    assert finding(found, "torch").remedy == "pip install 'torch>=2.6'"
    assert finding(found, "peft") == Finding(
        "peft", "not installed", "missing", "pip install 'peft>=0.21'"
    )


def test_extra_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda _name: None)
    assert doctor.extra_synth().remedy == "pip install 'face-mllm[synth]'"


def test_memory_and_disk_are_compared_with_the_need(monkeypatch, cold):
    monkeypatch.setattr("face_mllm.hardware.usable_memory", lambda: 2**30)
    assert doctor.memory().state == "missing"
    usage = doctor.shutil.disk_usage(cold)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _folder: usage._replace(free=10))
    found = list(doctor.disks())
    assert [one.state for one in found] == ["missing", "missing"]
    assert "FACE_MLLM_CACHE" in finding(found, "cache").remedy


def test_cold_cache_offline_cannot_work(monkeypatch, cold):
    assert doctor.embedded_llm().state == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.embedded_llm().remedy == "unset HF_HUB_OFFLINE for one run"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _name: None)
    assert doctor.embedded_llm().remedy == "python -m ensurepip"


@pytest.mark.parametrize("state, code", [("ok", 0), ("note", 0), ("missing", 1)])
def test_exit_code_says_whether_the_demo_can_run(monkeypatch, capsys, state, code):
    findings = [Finding("a thing", "[found]", state, "mend [it]")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(findings))
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert "[found]" in shown
    assert "mend [it]" in shown
    assert ("cannot run" in shown) == (code == 1)
    assert main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["demo_can_run"] == (code == 0)


def test_the_real_machine_is_examined(capsys, cold):
    main(["doctor", "--json"])
    names = {found["name"] for found in json.loads(capsys.readouterr().out)["findings"]}
    assert {"python", "packages", "device", "memory", "cache", "embedded:smollm2"} <= names
