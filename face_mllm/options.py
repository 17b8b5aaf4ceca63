"""Settings that need a package or a device: asked for, refused with a remedy, or switched on."""

from __future__ import annotations

import difflib
import importlib.util
import shutil
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from face_mllm.config import StageConfig
from face_mllm.errors import UserError

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "swanlab", "comet_ml", "clearml")


def check_options(stage: StageConfig, device: str) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Args:
        stage: its ``report_to``, ``liger`` and ``compile`` are looked at.
        device: ``cpu``, ``cuda`` ...

    Raises:
        UserError: naming what to install or to switch off.
    """
    check_trackers(stage.report_to)
    if stage.liger:
        if not device.startswith("cuda"):
            raise UserError(
                f"liger: true needs an NVIDIA or AMD GPU, this run is on {device}",
                "set liger: false",
            )
        if importlib.util.find_spec("liger_kernel") is None:
            raise UserError(
                "liger: true needs liger-kernel", "run `pip install 'face-mllm[liger]'`"
            )
    if stage.compile:
        if device == "mps":
            raise UserError("compile: true is not for Apple GPUs", "set compile: false")
        if device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
            raise UserError(
                "compile: true needs a C++ compiler on a CPU",
                "install one (on Debian: apt install g++), or set compile: false",
            )


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse an experiment tracker that is not there or not known."""
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(TRACKERS)}"
            raise UserError(f"report_to: {name} is not known", remedy)
        if not getattr(integration_utils, f"is_{name.removesuffix('_ml')}_available")():
            wanted = "'face-mllm[tracking]'" if name == "tensorboard" else name
            raise UserError(
                f"report_to: {name} is not installed or not set up", f"run `pip install {wanted}`"
            )


def trackers(stage: StageConfig) -> list[TrainerCallback]:
    """TensorBoard's files go beside the artifact: the run folder does not outlive the run."""
    if "tensorboard" not in stage.report_to:
        return []
    board = integration_utils.TensorBoardCallback()
    board.logging_dir = str(stage.out.with_name(f"{stage.out.name}.tensorboard"))
    return [board]


def switch_on(stage: StageConfig, language_model: Any) -> list[str]:
    """Apply ``liger`` and ``compile`` to the LLM; returns what was done, in words."""
    done = []
    if stage.liger:
        from liger_kernel.transformers import monkey_patch

        kind = language_model.config.model_type
        if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:  # it would do nothing, silently
            raise UserError(f"liger: true: Liger has no kernels for {kind}", "set liger: false")
        # the loss is computed at the label rows already: only the layers' kernels are taken
        monkey_patch._apply_liger_kernel_to_instance(
            model=language_model, cross_entropy=False, fused_linear_cross_entropy=False
        )
        done.append("Liger kernels in the LLM's layers")
    if stage.compile:
        decoder: nn.Module = language_model.get_decoder()
        decoder.compile(dynamic=True)  # rows differ in length; in place, so no weight is renamed
        done.append("the LLM's decoder compiled at its first rows")
    return done
