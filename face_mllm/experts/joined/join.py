"""Joining an expert to a composed model, by a stage's settings or as an artifact says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from face_mllm.artifact import Artifact
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined.expert import FOLDER, JoinedExpert
from face_mllm.experts.joined.leaks import check_val_unseen, verdict_source, warn_of_token
from face_mllm.experts.joined.settings import AUTO, ExpertBase, ExpertSettings
from face_mllm.experts.joined.val import val_questions
from face_mllm.experts.loading import kind_of, known_classes
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
    settled = settled_base(given, base, before)
    if settled is None:
        return None
    if settled.fusion:
        val_questions(data, known_classes(folder, settled.classes), given.fusion_faces)
        check_val_unseen(settled, folder, data)
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
    if not before.token:
        return dataclasses.replace(before, hidden=given.hidden)
    if given.hidden not in (0, before.hidden):
        raise UserError(
            f"expert.hidden: {given.hidden}, but the token of {init_from} was made with "
            f"{before.hidden}",
            "leave expert.hidden out to go on with it",
        )
    return before


def settled_base(
    given: ExpertSettings, base: ExpertBase, before: ExpertBase | None
) -> ExpertBase | None:
    """How a stage joins its expert; None where every way is switched off.

    Args:
        given: settings of the stage.
        base: of :func:`first_base`.
        before: what the previous artifact has.

    Raises:
        UserError: a head that cannot train along, or a setting that would change nothing.
    """
    for key in ("classes", "prompt_type"):
        if getattr(given, key) is not None and base.kind == "mask_fer":
            raise UserError(
                f"expert.{key}: {getattr(given, key)}, but a mask-FER answers for the classes it "
                "was trained on",
                f"leave expert.{key} out; it is for an Exp-CLIP",
            )
    named = ("token", "text", "fusion", "most", "prompt_type", "classes")
    base = dataclasses.replace(base, **_chosen(given, base, *named))
    if given.verdicts != AUTO and not base.text:
        raise UserError("expert.verdicts without verdicts in the prompt", "set expert.text: true")
    if not (base.token or base.text or base.fusion):
        return None
    if given.train == "frozen" and base.token and not (before and before.token):
        raise UserError("expert.train: frozen, but its token is new", "set expert.train: full")
    if given.head == "full" and not base.token:
        raise UserError("expert.head: full without a token", "set expert.token: true")
    if given.head == "full" and base.text:
        raise UserError("expert.head: full with verdicts in the prompt", "set expert.text: false")
    return base


def _chosen(given: ExpertSettings, base: ExpertBase, *names: str) -> dict[str, Any]:
    """Settings given, else those of the base."""
    chosen = {name: getattr(given, name) for name in names}
    return {k: getattr(base, k) if value is None else value for k, value in chosen.items()}
