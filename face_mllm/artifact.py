"""The artifact: the one folder a stage writes and every verb reads.

It holds what was trained (projector, LoRA adapter, any part trained in full) as safetensors, the
tokenizer and processors, ``stage.json`` with the chain of stages, and a model card. The frozen
bases stay references with fingerprints, so an artifact of a 7B model is megabytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_pipeline.records import whole_folder
from face_mllm.compose import Bases, compose
from face_mllm.errors import UserError
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.stages import PART_PREFIX, attach_adapter, part_of

STAGE_FILE = "stage.json"
QUESTIONS_FILE = "questions.json"
ADAPTER_FILE = "adapter_model.safetensors"
PACKAGES = ("face-mllm", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass
class Artifact:
    """What ``stage.json`` says.

    Attributes:
        bases: the frozen models it stands on.
        chain: one entry per stage: name, config, data fingerprint, held-out attributes, losses.
        trained: parts whose weights are inside in full (the projector always).
        lora: whether a LoRA adapter is inside.
    """

    bases: Bases
    chain: list[dict[str, Any]] = field(default_factory=list)
    trained: list[str] = field(default_factory=lambda: ["projector"])
    lora: bool = False


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


def save_weights(
    model: FaceMLLMForConditionalGeneration,
    artifact: Artifact,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write every trained weight into ``folder``: one file per part plus the PEFT adapter.

    Args:
        state: a gathered state dict, where parameters are sharded; else the model's own.
    """
    state = model.state_dict() if state is None else state
    for part in artifact.trained:
        prefix = PART_PREFIX[part]
        tensors = {
            name.removeprefix(prefix): tensor.contiguous()
            for name, tensor in state.items()
            if part_of(name) == part and "lora_" not in name
        }
        save_file(tensors, folder / f"{part}.safetensors")
    if artifact.lora:
        adapter = get_peft_model_state_dict(model, state_dict=state)
        save_file({k: v.contiguous() for k, v in adapter.items()}, folder / ADAPTER_FILE)
        model.peft_config["default"].save_pretrained(folder)


def load_weights(model: FaceMLLMForConditionalGeneration, artifact: Artifact, folder: Path) -> None:
    """Read what :func:`save_weights` wrote into a composed model, LoRA layers added if needed."""
    for part in artifact.trained:
        tensors = _read(folder / f"{part}.safetensors")
        module = model.get_submodule(PART_PREFIX[part].rstrip("."))
        _load_strict(module, tensors, folder / f"{part}.safetensors")
    if artifact.lora:
        if not getattr(model, "_hf_peft_config_loaded", False):
            attach_adapter(model, LoraConfig.from_pretrained(folder))
        result = set_peft_model_state_dict(model, _read(folder / ADAPTER_FILE))
        missing = [key for key in result.missing_keys if "lora_" in key]
        if missing or result.unexpected_keys:
            raise UserError(
                f"{folder / ADAPTER_FILE}: does not fit this LLM "
                f"({len(missing)} missing, {len(result.unexpected_keys)} foreign weights)",
                "the artifact belongs to another model; point to the one it was trained on",
            )


def save_artifact(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    artifact: Artifact,
    out: Path,
    *,
    state: dict[str, torch.Tensor] | None = None,
    extra_files: dict[str, str] | None = None,
) -> None:
    """Write the artifact folder whole or not at all."""
    with whole_folder(out) as partial:
        save_weights(model, artifact, partial, state)
        model.config.save_pretrained(partial)
        processor.save(partial)
        info = {
            "bases": artifact.bases.to_json(),
            "chain": artifact.chain,
            "trained": artifact.trained,
            "lora": artifact.lora,
        }
        (partial / STAGE_FILE).write_text(json.dumps(info, indent=1, default=str) + "\n")
        (partial / "README.md").write_text(model_card(artifact))
        for name, text in (extra_files or {}).items():
            (partial / name).write_text(text)


def read_artifact(folder: Path | str) -> Artifact:
    """Read ``stage.json`` of an artifact folder."""
    path = Path(folder) / STAGE_FILE
    try:
        info = json.loads(path.read_text())
        return Artifact(Bases(**info["bases"]), info["chain"], info["trained"], info["lora"])
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no {STAGE_FILE} there, so not a face_mllm artifact",
            "give the folder a `face-mllm train` wrote",
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})", "train the stage again") from error


def load_artifact(
    folder: Path | str, llm_dtype: torch.dtype
) -> tuple[FaceMLLMForConditionalGeneration, FaceProcessor, Artifact]:
    """The one loader: artifact folder -> (model in eval mode, processor, artifact)."""
    folder = Path(folder)
    artifact = read_artifact(folder)
    model, processor, _ = compose(artifact.bases, llm_dtype)
    load_weights(model, artifact, folder)
    return model.eval(), processor, artifact


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged ({error})", "train the stage again") from error


def _load_strict(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit this model ({str(error).splitlines()[-1].strip()})",
            "the artifact belongs to another model; point to the one it was trained on",
        ) from error


def model_card(artifact: Artifact) -> str:
    """Model card of an artifact: what it is, what it came from, what it must not be used for."""
    last = artifact.chain[-1] if artifact.chain else {}
    lines = [
        "---",
        "library_name: face-mllm",
        "tags: [face, multimodal, lora]",
        "---",
        f"# {last.get('stage', 'face_mllm artifact')}",
        "",
        f"Vision tower `{artifact.bases.vision}`, LLM `{artifact.bases.llm}`.",
        "",
        "| stage | data | protocols | steps | loss first -> last |",
        "|---|---|---|---|---|",
        *[
            f"| {s['stage']} | {s['data']} | "
            f"{', '.join(sorted(set(s.get('protocols', {}).values())))} | {s['steps']} | "
            f"{s['first_loss']:.3f} -> {s['last_loss']:.3f} |"
            for s in artifact.chain
        ],
        "",
        f"Attributes held out of every stage: {last.get('held_out') or 'none'}.",
        "",
        "Load with `FaceMLLM.from_pretrained(folder)`. Estimates about a face are not facts about",
        "a person: do not use them to identify, hire, police or diagnose anyone.",
    ]
    return "\n".join(lines) + "\n"
