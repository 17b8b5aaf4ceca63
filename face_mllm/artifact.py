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
from face_mllm.experts.joined.settings import HEAD_PART, ExpertBase
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.model_card import model_card
from face_mllm.stages import ADAPTER_NAME, PART_PREFIX, attach_adapter, part_of

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
        adapters: parts with a LoRA adapter inside.
        expert: how an expert is joined, None for none; it lies in the folder ``expert``.
    """

    bases: Bases
    chain: list[dict[str, Any]] = field(default_factory=list)
    trained: list[str] = field(default_factory=lambda: ["projector"])
    adapters: list[str] = field(default_factory=list)
    expert: ExpertBase | None = None


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
            _bare(name.removeprefix(prefix)): tensor.contiguous()
            for name, tensor in state.items()
            if part_of(name) == part and "lora_" not in name
        }
        save_file(_untied(tensors), folder / f"{part}.safetensors")
    for part in artifact.adapters:
        name, (weights, settings) = ADAPTER_NAME[part], adapter_files(folder, part)
        adapter = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
        save_file({k: v.contiguous() for k, v in adapter.items()}, weights)
        settings.write_text(adapter_json(model.peft_config[name]))


def adapter_files(folder: Path, part: str) -> tuple[Path, Path]:
    """Weights and settings of a part's adapter; the LLM's under the names PEFT knows."""
    prefix = "" if part == "llm" else f"{part}_"
    return folder / f"{prefix}{ADAPTER_FILE}", folder / f"{prefix}adapter_config.json"


def adapter_json(config: LoraConfig) -> str:
    """An adapter's settings as PEFT writes them."""
    settings = {key: value for key, value in config.to_dict().items() if key != "runtime_config"}
    return json.dumps(settings, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def read_adapter(folder: Path, part: str) -> LoraConfig:
    """Settings of a part's adapter in an artifact."""
    path = adapter_files(folder, part)[1]
    try:
        return LoraConfig.from_peft_type(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: missing or damaged ({error})", "train the stage again") from error


def _untied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One name for each tensor: safetensors refuses a head tied to the embeddings."""
    found = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: tensors[name] for name in tensors if found[tensors[name].data_ptr()] == name}


def _bare(name: str) -> str:
    """A weight's name before PEFT wrapped its layer."""
    return name.replace(".base_layer.", ".")


def load_weights(model: FaceMLLMForConditionalGeneration, artifact: Artifact, folder: Path) -> None:
    """Read what :func:`save_weights` wrote into a composed model, LoRA layers added if needed."""
    for part in artifact.trained:
        tensors = _read(folder / f"{part}.safetensors")
        module = model.get_submodule(PART_PREFIX[part].rstrip("."))
        _load_strict(module, tensors, folder / f"{part}.safetensors")
    for part in artifact.adapters:
        name, path = ADAPTER_NAME[part], adapter_files(folder, part)[0]
        if name not in getattr(model, "peft_config", {}):
            attach_adapter(model, read_adapter(folder, part), part)
        result = set_peft_model_state_dict(model, _read(path), adapter_name=name)
        missing = [key for key in result.missing_keys if "lora_" in key and f".{name}" in key]
        if missing or result.unexpected_keys:
            raise UserError(
                f"{path}: does not fit the {part} part "
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
            "trained": [part for part in artifact.trained if part != HEAD_PART],
            "adapters": artifact.adapters,
        }
        if artifact.expert:
            info["expert"] = artifact.expert.to_json()
            processor.expert.save(partial)
        (partial / STAGE_FILE).write_text(json.dumps(info, indent=1, default=str) + "\n")
        (partial / "README.md").write_text(
            model_card(artifact.bases, artifact.chain, artifact.adapters, artifact.expert)
        )
        for name, text in (extra_files or {}).items():
            (partial / name).write_text(text)


def read_artifact(folder: Path | str) -> Artifact:
    """Read ``stage.json`` of an artifact folder."""
    path = Path(folder) / STAGE_FILE
    try:
        info = json.loads(path.read_text())
        # before there were several, the only adapter was the LLM's and "lora" told of it
        adapters = info["adapters"] if "adapters" in info else ["llm"] * info["lora"]
        expert = ExpertBase(**info["expert"]) if "expert" in info else None
        bases = Bases(**info["bases"])
        return Artifact(bases, info["chain"], info["trained"], adapters, expert)
    except (FileNotFoundError, NotADirectoryError) as error:
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
    join_inside(model, processor, artifact, folder)
    load_weights(model, artifact, folder)
    return model.eval(), processor, artifact


def join_inside(
    model: FaceMLLMForConditionalGeneration,
    processor: FaceProcessor,
    artifact: Artifact,
    folder: Path,
) -> None:
    """Give a composed model the expert of an artifact, where it has one."""
    if artifact.expert:
        from face_mllm.experts.joined.expert import FOLDER
        from face_mllm.experts.joined.join import join

        join(model, processor, artifact.expert, folder / FOLDER)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged ({error})", "train the stage again") from error


def _load_strict(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = {_bare(name): name for name in module.state_dict() if "lora_" not in name}
    weights = dict(module.state_dict(keep_vars=True))
    filled = {weights[own[name]].data_ptr() for name in tensors if name in own}
    lacking = [name for name in own.values() if weights[name].data_ptr() not in filled]
    foreign = [name for name in tensors if name not in own]
    try:
        if lacking or foreign:
            raise RuntimeError(f"{len(lacking)} weights missing, {len(foreign)} foreign")
        module.load_state_dict({own[n]: tensor for n, tensor in tensors.items()}, strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit this model ({str(error).splitlines()[-1].strip()})",
            "the artifact belongs to another model; point to the one it was trained on",
        ) from error
