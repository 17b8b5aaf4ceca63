"""Config reading: shipped names, overrides, and the wording of every mistake."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from face_mllm import configio
from face_mllm.configio import find_config, load_yaml_model, shipped_configs
from face_mllm.errors import UserError


class Lora(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = 8
    targets: list[str] = []


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    take: str = "all"


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: str
    kind: Literal["stage", "clip"] = "stage"
    max_steps: int = 10
    learning_rate: float = 1e-4
    shuffle: bool = True
    lora: Lora | None = None
    sources: list[Source] = []

    @field_validator("max_steps")
    @classmethod
    def positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("max_steps must be at least 1")
        return value


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def failure(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_yaml_model(path, Config, overrides)
    return str(caught.value)


def test_reads_typed_values_and_nested_models(tmp_path):
    path = write(tmp_path, "data: faces\nlearning_rate: 2e-4\nlora: {rank: 16}\n")
    config = load_yaml_model(path, Config)
    assert (config.data, config.learning_rate, config.lora.rank) == ("faces", 2e-4, 16)


def test_overrides_are_yaml_scalars_applied_before_validation(tmp_path):
    path = write(tmp_path, "sources: [{source: synth}, {source: ferplus}]\n")
    config = load_yaml_model(
        path,
        Config,
        ("data=a=b", "lora.rank=4", "lora.targets=[q, v]", "shuffle=false", "sources.1.take=x"),
    )
    assert config.data == "a=b"
    assert config.lora == Lora(rank=4, targets=["q", "v"])
    assert config.shuffle is False
    assert config.sources[1].take == "x"


@pytest.mark.parametrize(
    "text, parts",
    [
        ("data: x\nmax_step: 3\n", ("unknown key 'max_step'", "did you mean 'max_steps'?")),
        ("data: x\nlora: {rnak: 3}\n", ("unknown key 'lora.rnak'", "did you mean 'rank'?")),
        ("data: x\nsources: [{source: a, tak: b}]\n", ("'sources.0.tak'", "'take'")),
        ("data: x\nqqqq: 3\n", ("unknown key 'qqqq'", "valid keys: data, kind")),
        ("data: x\nmax_steps: many\n", ("key 'max_steps' is 'many'", "expected a whole number")),
        ("data: x\nlora: 3\n", ("key 'lora' is 3", "expected keys with values")),
        ("data: x\nkind: stge\n", ("key 'kind' is 'stge'", "'stage' or 'clip'")),
        ("data: x\nshuffle: perhaps\n", ("'shuffle'", "expected true or false")),
        ("data: x\nmax_steps: 0\n", ("max_steps must be at least 1",)),
        ("dta: x\n", ("unknown key 'dta'", "'data'")),
        ("max_steps: 3\n", ("key 'data' is missing", "add `data: ...`")),
        ("- a\n- b\n", ("expected `key: value` lines",)),
        ("data: [x\nmax_steps: 3\n", ("config.yaml:2", "not valid YAML")),
        ("[a]: x\n", ("config.yaml:1:1", "unhashable")),
        ("data: x\ndata: y\n", ("config.yaml:2:1", "written twice")),
    ],
)
def test_mistakes_name_file_key_and_remedy(tmp_path, text, parts):
    message = failure(write(tmp_path, text))
    assert "config.yaml" in message
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("override", ["max_steps", "=3", "data.x=[", "data.deeper=3", "a..b=1"])
def test_broken_overrides_are_named(tmp_path, override):
    assert override in failure(write(tmp_path, "data: x\n"), override)


def test_unreadable_files(tmp_path):
    assert "no such config file" in failure(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"data: \xe9\xff\n")
    assert "UTF-8" in failure(tmp_path / "latin.yaml")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    root = tmp_path / "site" / "stage_configs"
    (root / "embedded").mkdir(parents=True)
    (root / "embedded" / "stage1_align.yaml").write_text("data: x\n")
    monkeypatch.setattr(configio, "CONFIG_ROOTS", (root,))
    return root


@pytest.mark.parametrize(
    "name",
    [
        "stage_configs/embedded/stage1_align.yaml",
        "embedded/stage1_align.yaml",
        "embedded/stage1_align",
        "./stage_configs/embedded/stage1_align.yaml",
    ],
)
def test_shipped_configs_by_name(shipped, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == shipped / "embedded" / "stage1_align.yaml"
    assert shipped_configs() == ["embedded/stage1_align"]


def test_nearest_shipped_name_and_no_way_out_of_the_folder(shipped, tmp_path):
    (tmp_path / "site" / "secret.yaml").write_text("data: x\n")
    assert "stage1_align.yaml?" in failure("embedded/stage1_algn")
    assert "no such config file" in failure("../secret")
