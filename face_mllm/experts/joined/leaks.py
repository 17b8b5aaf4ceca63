"""Whether an expert knows a stage's training faces by heart, and what it may say of them.

An expert is surer of a face it was trained on than it will be of any other, and an LLM that learns
from such verdicts learns to believe them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.records import load_split, read_manifest
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import (
    AUTO,
    IN_SAMPLE,
    OUT_OF_FOLD,
    UNSEEN,
    ExpertBase,
    ExpertSettings,
)
from face_mllm.experts.joined.verdict import Verdicts
from face_mllm.experts.loading import TRAINED_ALONG, known_classes, training_of


def verdict_source(given: ExpertSettings, base: ExpertBase, folder: Path, data: Path) -> str:
    """Where the verdicts on training faces come from, refusing those that leak.

    Args:
        given: settings of the stage.
        base: how the expert is joined.
        folder: of the expert.
        data: the stage's dataset.

    Raises:
        UserError: the expert was trained on labels of these faces, or it cannot be told; or a file
            of verdicts that is not of this expert's classes and these faces.
    """
    if given.verdicts not in (AUTO, IN_SAMPLE):
        classes = known_classes(folder, base.classes)
        Verdicts(Path(given.verdicts), classes).check(load_split(data, "train")["id"][:])
        return OUT_OF_FOLD
    if not knows_labels(base, folder, data):
        return UNSEEN
    if given.verdicts == IN_SAMPLE:
        return IN_SAMPLE
    remedy = "accept them with expert.verdicts: in_sample"
    if base.kind == "mask_fer":
        remedy = (
            "make some with `face-mllm mask-fer verdicts` and set expert.verdicts to the file, "
            f"or {remedy}"
        )
    raise UserError(
        f"{base.source} was trained on labels of faces in {data}: its verdicts on them are "
        "surer than on any new face",
        remedy,
    )


def knows_labels(base: ExpertBase, folder: Path, data: Path) -> bool:
    """Whether the expert was trained on labels of this dataset's training faces.

    Exp-CLIP reads no label unless a stage trained its head along. mask-FER's folder names its
    data; where that is gone, the answer is yes, since nobody can tell.
    """
    training = training_of(folder)
    if base.trained_along or training.get(TRAINED_ALONG):
        return True
    if base.kind == "exp_clip":
        return False
    seen = _trained_on(training, data)
    return seen is None or not seen.isdisjoint(load_split(data, "train")["id"][:])


def check_val_unseen(base: ExpertBase, folder: Path, data: Path) -> None:
    """Late fusion believes an expert as far as val says: it must not have learnt val's labels.

    An expert whose data is gone is let through, since nobody can tell.

    Raises:
        UserError: the expert was trained on val faces.
    """
    seen = None if base.kind == "exp_clip" else _trained_on(training_of(folder), data)
    val = load_split(data, "val")["id"][:]
    known = [name for name in val if name in (seen or ())]
    if known:
        raise UserError(
            f"{base.source} was trained on labels of {len(known)} of {len(val)} val faces of "
            f"{data}, such as {known[0]}: late fusion would believe it more than on any new face",
            "use an expert trained on other faces, or train it on this dataset",
        )


def _trained_on(training: dict[str, Any], data: Path) -> set[str] | None:
    """Ids of the faces a mask-FER was trained on; None where its data is gone."""
    from face_mllm.train import manifest_fingerprint

    theirs = Path(training.get("data") or "unknown")
    if training.get("data_fingerprint") == manifest_fingerprint(read_manifest(data)):
        theirs = data
    if not any(theirs.glob("train-*.parquet")):
        return None
    return set(load_split(theirs, "train")["id"][:])


def warn_of_token(base: ExpertBase, folder: Path, data: Path) -> None:
    """Say where a token's vectors are of faces the expert knows by heart."""
    from face_mllm.train import say

    if base.token and knows_labels(base, folder, data):
        say(
            f"[yellow]note[/] {base.source} was trained on labels of these faces: its vectors "
            "separate them better than new ones"
        )
