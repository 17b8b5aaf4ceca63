"""Either expert from its folder: which one lies there, what it knows, the thing itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from face_mllm.errors import UserError, brief
from face_mllm.experts.exp_clip import artifact as exp_clip
from face_mllm.experts.exp_clip.head import HEAD_FILE
from face_mllm.experts.exp_clip.prompts import CLASSES
from face_mllm.experts.mask_fer.expert import INFO_FILE as MASK_FER_FILE
from face_mllm.experts.mask_fer.expert import WEIGHTS_FILE, MaskFerExpert, read_info
from face_mllm.hardware import best_device

FILES = {  # description and weights of each kind's folder
    "mask_fer": (MASK_FER_FILE, WEIGHTS_FILE),
    "exp_clip": (exp_clip.INFO_FILE, HEAD_FILE),
}
TRAINED_ALONG = "trained_along"  # key of an expert whose head a stage of the MLLM went on training


def kind_of(folder: Path) -> str:
    """``mask_fer`` or ``exp_clip``.

    Raises:
        UserError: the folder holds neither.
    """
    for kind, (about, _) in FILES.items():
        if (folder / about).is_file():
            return kind
    raise UserError(
        f"{folder}: no expert there (no {MASK_FER_FILE}, no {exp_clip.INFO_FILE})",
        "give the folder of `face-mllm mask-fer train` or `exp-clip train`",
    )


def load_expert(folder: Path) -> MaskFerExpert | exp_clip.ExpClip:
    """Load what ``exp-clip train`` or ``mask-fer train`` wrote.

    Raises:
        UserError: neither of the two, damaged, or its CLIP is not here or another one by now.
    """
    kind = kind_of(folder)
    try:
        if kind == "mask_fer":
            return MaskFerExpert.from_pretrained(folder, best_device())
        return exp_clip.load_exp_clip(folder)
    except UserError as error:
        if error.message.startswith(str(folder)):
            raise
        about = folder / FILES[kind][0]
        raise UserError(
            f"{about}: its frozen CLIP: {error.message}",
            f"{error.remedy}; where it lies is written there under `clip`",
        ) from error


def known_classes(folder: Path, first: int) -> tuple[str, ...]:
    """The expressions an expert tells apart, in the order of its probabilities.

    Args:
        folder: of the expert.
        first: so many of Exp-CLIP's, which can be asked for any; a mask-FER has its own.
    """
    if kind_of(folder) == "exp_clip":
        return CLASSES[:first]
    return read_info(folder)[0].classes


def training_of(folder: Path) -> dict[str, Any]:
    """What an expert's folder says of its training.

    Raises:
        UserError: no expert there, or a damaged description.
    """
    return _description(folder)[1]


def mark_trained_along(folder: Path) -> None:
    """Write into an expert's folder that its head has read the labels of a stage's faces."""
    info, training = _description(folder)
    training[TRAINED_ALONG] = True
    (folder / FILES[kind_of(folder)][0]).write_text(json.dumps(info, indent=1) + "\n")
    card = folder / "README.md"
    text = card.read_text() if card.exists() else "# An expert on faces\n"
    card.write_text(
        f"{text}\nSince then a stage of a multimodal LLM has trained its head along, on the "
        "expression labels of that stage's faces; figures above are of before.\n"
    )


def _description(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that the description says, and the part of it about the training."""
    kind = kind_of(folder)
    path = folder / FILES[kind][0]
    try:
        info = json.loads(path.read_text())
        training = info["training"] if kind == "mask_fer" else info
        if not isinstance(training, dict) or not info["clip"]:
            raise TypeError("no description of an expert")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({brief(error)})", "train the expert again") from error
    return info, training
