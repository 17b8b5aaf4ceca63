"""Model references: embedded names, folders, hub ids, and what is said when they are not there."""

from typing import ClassVar

import pytest

from face_mllm import references
from face_mllm.errors import UserError
from face_mllm.references import is_cached, resolve


def message(reference: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(reference)
    assert caught.value.remedy
    return str(caught.value)


def test_folder_is_itself(tmp_path):
    assert resolve(str(tmp_path)) == tmp_path


def test_wrong_references_name_the_choices(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "a file, not a model folder" in message(str(tmp_path / "model.safetensors"))
    assert "no such model folder" in message(str(tmp_path / "absent"))
    assert "no such model folder" in message("./absent/model")
    assert "embedded:face-clip or embedded:smollm2" in message("embedded:smollm3")


def test_face_clip_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "FACE_CLIP", tmp_path)
    assert "face_clip.yaml" in message("embedded:face-clip")
    assert not is_cached("embedded:face-clip")
    (tmp_path / "config.json").write_text("{}")
    assert resolve("embedded:face-clip") == tmp_path
    assert is_cached("embedded:face-clip")


def test_cold_cache_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_MLLM_CACHE", str(tmp_path))
    assert not is_cached("embedded:smollm2")


@pytest.fixture
def hub(monkeypatch):
    """The hub client with its two calls replaced; no test here may reach a network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    class Info:
        def __init__(self, *names):
            self.siblings = [type("File", (), {"rfilename": name}) for name in names]

    class Hub:
        files = Info("model.safetensors", "pytorch_model.bin")
        error = None
        calls: ClassVar[list] = []

        def model_info(self, *_args, **_kwargs):
            if self.error:
                raise self.error
            return self.files

        def snapshot_download(self, repo, **kwargs):
            if self.error:
                raise self.error
            self.calls.append((repo, kwargs))
            return "/snapshot"

    fake = Hub()
    fake.info = Info
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_hub_id_with_revision_leaves_pickles_where_it_can(hub):
    assert str(resolve("org/model@v2")) == "/snapshot"
    repo, options = hub.calls[-1]
    assert (repo, options["revision"]) == ("org/model", "v2")
    assert "*.bin" in options["ignore_patterns"]
    hub.files = hub.info("pytorch_model.bin")
    resolve("org/older")
    assert "*.bin" not in hub.calls[-1][1]["ignore_patterns"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("OfflineModeIsEnabled", "hub cannot be reached"),
        ("LocalEntryNotFoundError", "hub cannot be reached"),
        ("HFValidationError", "neither a folder nor a model on the hub"),
    ],
)
def test_hub_errors_have_remedies(hub, name, words):
    import huggingface_hub.errors

    hub.error = getattr(huggingface_hub.errors, name)("some text")
    assert words in message("org/model")


@pytest.mark.parametrize(
    "name, words",
    [("GatedRepoError", "hf auth login"), ("RepositoryNotFoundError", "check the spelling")],
)
def test_hub_answers_have_remedies(hub, name, words):
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, name)
    hub.error = kind.__new__(kind)
    assert words in message("org/model")
