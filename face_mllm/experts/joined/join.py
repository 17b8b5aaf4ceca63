"""Joining an expert to a composed model, by a stage's settings or as an artifact says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_pipeline.records import load_split, read_manifest
from face_mllm.artifact import Artifact
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined.expert import FOLDER, JoinedExpert, kind_of
from face_mllm.experts.joined.settings import (
    AUTO,
    IN_SAMPLE,
    OUT_OF_FOLD,
    UNSEEN,
    ExpertBase,
    ExpertSettings,
)
from face_mllm.hardware import best_device
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.expert import ExpertProjector
from face_mllm.model.processing import FaceProcessor


def join(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    base: ExpertBase,
    folder: Path,
    seed: int = 0,
    trains_along: bool = False,
) -> None:
    """Give a model and its processor an expert.

    Args:
        model: freshly composed; gets the token's projector, and the head if it trains along.
        processor: counts the token among the placeholders and looks through the expert.
        base: how it is joined.
        folder: of the expert.
        seed: of the projector's first weights.
        trains_along: whether the head becomes part of the model.
    """
    expert = JoinedExpert(folder, base, best_device())
    expert.trains_along = trains_along
    processor.expert = expert
    if base.token:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = model.config.text_config.hidden_size
            model.expert = ExpertProjector(expert.width, width, base.hidden)
        processor.image_tokens += 1
    if trains_along:
        model.expert_head = expert.head


def join_stage(
    config: StageConfig,
    artifact: Artifact,
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
) -> Artifact:
    """Give the model the stage's expert, or leave out the one of the stage before.

    Returns:
        The artifact as the stage will write it.
    """
    before = artifact.expert
    found = stage_expert(config.expert, before, config.init_from, config.data)
    base = found[0] if found else None
    kept = base is not None and base.token and before is not None and before.token
    trained = [part for part in artifact.trained if part != "expert" or kept]
    if found:
        base, folder = found
        warn_of_token(base, folder, config.data)
        along = config.expert is not None and config.expert.head == "full"
        join(model, processor, base, folder, config.seed, along)
        base = dataclasses.replace(base, trained_along=base.trained_along or along)
    return dataclasses.replace(artifact, trained=trained, expert=base)


def stage_expert(
    settings: ExpertSettings | None, before: ExpertBase | None, init_from: Path | None, data: Path
) -> tuple[ExpertBase, Path] | None:
    """The expert of a stage and the folder it is read from; None where there is none.

    Args:
        settings: of this stage; None goes on as before.
        before: what the previous artifact has.
        init_from: the previous artifact.
        data: the stage's dataset.

    Raises:
        UserError: settings that lead nowhere, or verdicts the expert may not give.
    """
    if settings is None and before is None:
        return None
    given = settings or ExpertSettings()
    base = first_base(given, before, init_from, kind_of)
    folder = Path(base.source) if given.model is not None else Path(str(init_from)) / FOLDER
    settled = settled_base(given, base)
    if settled is None:
        return None
    if settled.fusion:
        check_val(data)
    said = verdict_source(given, settled, folder, data) if settled.text else ""
    return dataclasses.replace(settled, verdicts=said), folder


def first_base(
    given: ExpertSettings,
    before: ExpertBase | None,
    init_from: Path | None,
    kind: Callable[[Path], str],
) -> ExpertBase:
    """Which expert a stage has: the one it names, else that of the stage before.

    Args:
        given: settings of the stage.
        before: what the previous artifact has.
        init_from: the previous artifact.
        kind: tells what lies in an expert's folder.

    Raises:
        UserError: no expert named anywhere, or a second one beside a token.
    """
    if given.model is not None:
        folder = Path(given.model).expanduser().resolve()
        token = before is not None and before.token
        if token and given.token is not False:
            raise UserError(
                f"expert.model: {given.model}, but {init_from} has a token of another expert",
                "leave expert.model out to go on with it, or set expert.token: false first",
            )
        return ExpertBase(kind(folder), str(folder), hidden=given.hidden)
    if before is None or init_from is None:
        raise UserError("expert without a model", "set expert.model to the expert's folder")
    return before if before.token else dataclasses.replace(before, hidden=given.hidden)


def settled_base(given: ExpertSettings, base: ExpertBase) -> ExpertBase | None:
    """How a stage joins its expert; None where every way is switched off.

    Raises:
        UserError: a head that cannot train along.
    """
    base = dataclasses.replace(base, **_chosen(given, base, "token", "text", "fusion"))
    base = dataclasses.replace(base, **_chosen(given, base, "most", "prompt_type"))
    if not (base.token or base.text or base.fusion):
        return None
    if given.head == "full" and not base.token:
        raise UserError("expert.head: full without a token", "set expert.token: true")
    if given.head == "full" and base.text:
        raise UserError("expert.head: full with verdicts in the prompt", "set expert.text: false")
    return base


def _chosen(given: ExpertSettings, base: ExpertBase, *names: str) -> dict[str, Any]:
    """Settings given, else those of the base."""
    chosen = {name: getattr(given, name) for name in names}
    return {k: getattr(base, k) if value is None else value for k, value in chosen.items()}


def verdict_source(given: ExpertSettings, base: ExpertBase, folder: Path, data: Path) -> str:
    """Where the verdicts on training faces come from, refusing those that leak.

    An expert is surer of a face it was trained on than it will be of any other, and an LLM that
    learns from such verdicts learns to believe them.

    Raises:
        UserError: the expert was trained on labels of these faces, or it cannot be told.
    """
    if given.verdicts not in (AUTO, IN_SAMPLE):
        return OUT_OF_FOLD
    if not knows_labels(base, folder, data):
        return UNSEEN
    if given.verdicts == AUTO:
        raise UserError(
            f"{base.source} was trained on labels of faces in {data}: its verdicts on them are "
            "surer than on any new face",
            "make some with `face-mllm mask-fer verdicts` and set expert.verdicts to the file, "
            "or accept them with expert.verdicts: in_sample",
        )
    return IN_SAMPLE


def knows_labels(base: ExpertBase, folder: Path, data: Path) -> bool:
    """Whether the expert was trained on labels of this dataset's training faces.

    Exp-CLIP reads no label. mask-FER's folder names its data; where that is gone, the answer is
    yes, since nobody can tell.
    """
    if base.trained_along:
        return True
    if base.kind == "exp_clip":
        return False
    from face_mllm.experts.mask_fer.expert import read_info
    from face_mllm.train import manifest_fingerprint

    training = read_info(folder)[1]
    if training.get("data_fingerprint") == manifest_fingerprint(read_manifest(data)):
        return True
    theirs = Path(training.get("data") or "unknown")
    if not any(theirs.glob("train-*.parquet")):
        return True
    ids = set(load_split(theirs, "train")["id"][:])
    return not ids.isdisjoint(load_split(data, "train")["id"][:])


def check_val(data: Path) -> None:
    """Late fusion is fitted on the val split and on nothing else."""
    if not any(data.glob("val-*.parquet")):
        raise UserError(
            f"{data}: no val split to fit late fusion on",
            "build the data with one, or set expert.fusion: false",
        )


def warn_of_token(base: ExpertBase, folder: Path, data: Path) -> None:
    """Say where a token's vectors are of faces the expert knows by heart."""
    from face_mllm.train import say

    if base.token and knows_labels(base, folder, data):
        say(
            f"[yellow]note[/] {base.source} was trained on labels of these faces: its vectors "
            "separate them better than new ones"
        )
