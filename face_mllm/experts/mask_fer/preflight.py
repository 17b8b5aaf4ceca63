"""What can be checked of a mask-FER config without training, and without what is not here."""

from __future__ import annotations

import torch

from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert, build_model, shape_of
from face_mllm.experts.mask_fer.faces import load_training
from face_mllm.experts.mask_fer.model import MaskFer
from face_mllm.experts.preflight import CONFIG_ONLY, Say, here


def preflight(config: MaskFerConfig, passed: Say, skipped: Say, meta: bool = False) -> None:
    """Check shapes, data and models.

    Args:
        config: valid by its keys and types.
        passed: told of each check that was made.
        skipped: told of each that was not, because its data or model is not on this machine.
        meta: look at the config only; models and data need not be here.

    Raises:
        UserError: at the first thing that would stop the run.
    """
    if meta:
        skipped(CONFIG_ONLY)
        _check_outline(config, passed, skipped)
        return
    missing = [name for name in (config.clip.model, config.mask.weights) if name and not here(name)]
    if missing:
        skipped(f"{', '.join(missing)}: not on this machine, so not loaded")
        _check_outline(config, passed, skipped)
    else:
        passed(f"models load: {_shapes(config, MaskFerExpert.fresh(config).model)}")
    if not config.data.exists():
        skipped(f"{config.data}: no such folder here, so its classes were not counted")
        return
    train, val = load_training(config.data, config.classes, config.remap, config.val_share)
    passed(f"data: {len(train):,} training and {len(val):,} validation faces of these classes")


def _check_outline(config: MaskFerConfig, passed: Say, skipped: Say) -> None:
    """What can be said of the shapes without weights."""
    if config.clip.width:
        passed(f"shapes: {_shapes(config, _outline(config))}")
    else:
        skipped("shapes: clip.width is not given")


def _outline(config: MaskFerConfig) -> MaskFer:
    """The trained part on the meta device: shapes without weights."""
    bare = config.model_copy(update={"mask": config.mask.model_copy(update={"weights": None})})
    shape = shape_of(bare, config.clip.width, size=bare.mask.size)
    with torch.device("meta"):
        return build_model(shape, config.clip.width, config.clip.width)


def _shapes(config: MaskFerConfig, model: MaskFer) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    left = model.width - model.channels * model.classes
    return (
        f"{model.classes} classes of {model.channels} channels, {left} left over; "
        f"{count / 1e6:.2f} M trained parameters, mask from {config.mask.kind}"
    )
