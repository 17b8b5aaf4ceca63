"""Model references of the configs to local folders: ``embedded:NAME``, a folder, or a hub id."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from face_mllm.embedded.smollm2 import smollm2_folder
from face_mllm.errors import UserError
from face_mllm.progress import Progress, terminal_progress

FACE_CLIP = Path(__file__).resolve().parent / "embedded" / "face_clip"

# weights of other frameworks; the pickled torch ones go too where safetensors exist
_OTHER_FRAMEWORKS = ["*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.tflite", "*.ot", "*.pth"]


def resolve(reference: str, progress: Progress | None = None) -> Path:
    """Return the local folder a model reference stands for.

    Args:
        reference: ``embedded:smollm2``, ``embedded:face-clip``, a folder, or a hub id
            (``org/name`` or ``org/name@revision``), which is downloaded unless cached.
        progress: told of long steps; a bar on stderr if not given.

    Raises:
        UserError: an unknown name, a missing folder, or a download that cannot be had.
    """
    if reference.startswith("embedded:"):
        return _embedded(reference, progress)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{reference}: a file, not a model folder", "give the folder it is in")
    if not is_hub_id(reference):
        raise UserError(
            f"{reference}: no such model folder",
            "give a folder, a hub id (org/name), or one of " + ", ".join(sorted(EMBEDDED)),
        )
    return _from_hub(reference)


def is_hub_id(reference: str) -> bool:
    """Whether a reference reads as ``org/name``; a folder of that name comes first."""
    named = not reference.startswith((".", "/", "~", "embedded:"))
    return named and reference.count("/") == 1


def _embedded(reference: str, progress: Progress | None) -> Path:
    maker = EMBEDDED.get(reference)
    if maker is None:
        raise UserError(
            f"{reference}: no such embedded model", "choose " + " or ".join(sorted(EMBEDDED))
        )
    if progress is not None:
        return maker(progress)
    with terminal_progress() as bar:
        return maker(bar)


def _face_clip(_progress: Progress) -> Path:
    if not (FACE_CLIP / "config.json").is_file():
        raise UserError(
            f"{FACE_CLIP}: embedded:face-clip is not in this installation",
            "reinstall face-mllm, or make it with "
            "`face-mllm train stage_configs/embedded/face_clip.yaml`",
        )
    return FACE_CLIP


EMBEDDED: dict[str, Callable[[Progress], Path]] = {
    "embedded:smollm2": smollm2_folder,
    "embedded:face-clip": _face_clip,
}


def is_cached(reference: str) -> bool:
    """Whether an embedded model is ready without any download or conversion."""
    from face_mllm.embedded import cache, smollm2

    if reference == "embedded:smollm2":
        return cache.is_whole(cache.cache_dir() / smollm2.FOLDER)
    return reference == "embedded:face-clip" and (FACE_CLIP / "config.json").is_file()


def _from_hub(reference: str) -> Path:
    """Snapshot of a hub model; a cached one is found without a network."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    repo, _, revision = reference.partition("@")
    try:
        ignore = _OTHER_FRAMEWORKS + _pickles(repo, revision or None)
        with _hub_bars():
            return Path(snapshot_download(repo, revision=revision or None, ignore_patterns=ignore))
    except hub.GatedRepoError as error:
        raise UserError(
            f"{repo}: gated on the hub",
            "accept its terms on the model page, then `hf auth login`",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError) as error:
        raise UserError(
            f"{reference}: neither a folder nor a model on the hub", "check the spelling"
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        raise UserError(
            f"{repo}: not in the hub cache and the hub cannot be reached",
            "connect (and unset HF_HUB_OFFLINE), or give a local folder or embedded:smollm2",
        ) from error
    except hub.HfHubHTTPError as error:
        raise UserError(f"{repo}: the hub answered {error}".splitlines()[0], "try later") from error


@contextmanager
def _hub_bars() -> Iterator[None]:
    """The hub's own bars for a download, where other bars of the libraries are off."""
    from huggingface_hub import utils

    silent = utils.are_progress_bars_disabled()
    unasked = "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    if silent and unasked:
        utils.enable_progress_bars()
    yield
    if silent and unasked:
        utils.disable_progress_bars()


def _pickles(repo: str, revision: str | None) -> list[str]:
    """Patterns of pickled weights to leave out where the repository has safetensors."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(repo, revision=revision, timeout=10).siblings or []
    except Exception:  # snapshot_download meets it too: its cache answers, or it says what is wrong
        return []
    return ["*.bin"] if any(file.rfilename.endswith(".safetensors") for file in files) else []
