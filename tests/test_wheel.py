"""The built wheel: its top-level names, and that everything the code reads is inside."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("face_mllm", "data_pipeline", "eval")
NOT_SHIPPED = {"__pycache__"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel without a network: hatchling comes with the dev extra."""
    pytest.importorskip("hatchling", reason="pip install 'face-mllm[dev]'")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return next(out.glob("*.whl"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_top_level_names_are_the_three_packages(wheel):
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_inside(wheel, package):
    """Templates, label tables and weights are data files: one left out breaks an installation."""
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }
    assert files - names(wheel) == set()


def test_stage_configs_are_inside_and_found_by_name(wheel, tmp_path):
    configs = sorted(path.relative_to(ROOT) for path in (ROOT / "stage_configs").rglob("*.yaml"))
    inside = names(wheel)
    assert [c for c in configs if f"face_mllm/{c.as_posix()}" not in inside] == []
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import sys; from face_mllm.configio import find_config, shipped_configs\n"
        "for name in shipped_configs(): print(find_config(name))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    assert len(found) == sum("accelerate" not in config.parts for config in configs)
    assert all(Path(place).is_relative_to(tmp_path / "site") for place in found)


def test_command_and_licence_are_declared(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "face-mllm = face_mllm.cli:main" in archive.read(info).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
