"""What the pre-flights of both experts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from face_mllm.errors import UserError
from face_mllm.references import EMBEDDED, is_cached

Say = Callable[[str], None]
CONFIG_ONLY = "models and data: not looked at"
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def here(reference: str) -> bool:
    """Whether a model reference can be read without a network."""
    if reference in EMBEDDED:
        return is_cached(reference)
    if reference.startswith("embedded:") or Path(reference).expanduser().exists():
        return True  # of an unknown name, loading says what is wrong
    if reference.endswith(WEIGHT_FILES) or reference.count("/") != 1:
        return reference.startswith((".", "/", "~"))  # a path: loading says what is wrong
    repo, _, revision = reference.partition("@")
    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision or None), str)


def checked_width(model: str, found: int, said: int, key: str) -> int:
    """The width a model has, which is what the config says if it says one.

    Raises:
        UserError: the config says another.
    """
    if said not in (0, found):
        raise UserError(
            f"{model}: its features are {found} wide, {key} says {said}",
            f"correct {key}, or set it to 0",
        )
    return found
