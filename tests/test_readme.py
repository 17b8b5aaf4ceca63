"""The README's commands exist as written: verbs, options, config names, settings, links."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from face_mllm.cli import app
from face_mllm.configio import find_config, load_yaml_model

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_commands() -> list[list[str]]:
    """Every ``face-mllm ...`` of the bash blocks and the inline code, split into words."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    inline = re.findall(r"`(face-mllm [^`]+)`", README)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    parts = [part.strip() for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [found[1:] for found in words if found and Path(found[0]).name == "face-mllm"]


def stage_trainings() -> list[list[str]]:
    return [
        [word for word in words[1:] if not word.startswith("--")]
        for words in shell_commands()
        if words[0] in ("train", "validate")
    ]


def test_the_readme_shows_commands():
    verbs = {words[0] for words in shell_commands()}
    assert {"demo", "chat", "describe", "data", "train", "validate", "eval", "doctor"} <= verbs


@pytest.mark.parametrize("words", shell_commands(), ids=" ".join)
def test_command_parses(words):
    """Parsing alone refuses an unknown verb, an unknown option and a missing argument."""
    command = typer.main.get_command(app)
    while getattr(command, "commands", None) is not None:
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(command.name, list(words))
    assert not context.args


@pytest.mark.parametrize("words", stage_trainings(), ids=" ".join)
def test_configs_and_their_settings_exist(words):
    from face_mllm.config import StageConfig

    name, overrides = words[0], words[1:]
    assert yaml.safe_load(find_config(name).read_text()).get("kind", "mllm") == "mllm"
    load_yaml_model(name, StageConfig, overrides)


def test_other_config_names_exist():
    for name in re.findall(r"stage_configs/[\w/]+\.yaml", README):
        assert find_config(name).is_file()


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_first_screen_has_both_commands():
    first = README[: README.index("\n## ")]
    assert "bash .ci/run" in first
    assert "face-mllm demo" in first
