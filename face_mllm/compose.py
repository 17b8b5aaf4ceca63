"""Builds the model from its references: any Hugging Face tower, projector, any causal LLM."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from face_mllm.errors import UserError, brief
from face_mllm.hardware import choose_hardware
from face_mllm.model import FaceMLLMConfig, FaceMLLMForConditionalGeneration
from face_mllm.model.blocks import BLOCKS, runs_blocks
from face_mllm.model.heads import check_head
from face_mllm.model.processing import FaceProcessor, load_image_processor, load_tokenizer
from face_mllm.model.vision import count_image_tokens, load_vision_tower
from face_mllm.quant import keep_exact, nf4_loading
from face_mllm.references import resolve
from face_mllm.sharding import align


@dataclass(frozen=True)
class Bases:
    """What a model stands on: references, fingerprints and how the tower is read.

    Attributes:
        vision, llm: references as given (hub id, folder, embedded:NAME).
        vision_fingerprint, llm_fingerprint: of the resolved folders; empty until resolved.
        vision_layer, vision_select, projector_hidden, system, llm_quant: see the stage config.
    """

    vision: str
    llm: str
    vision_layer: int = -1
    vision_select: str = "full"
    projector_hidden: int = 0
    system: str = ""
    llm_quant: str = "none"
    vision_fingerprint: str = ""
    llm_fingerprint: str = ""

    def to_json(self) -> dict:
        """Plain dictionary for ``stage.json``."""
        return asdict(self)


def compose(
    bases: Bases, llm_dtype: torch.dtype, seed: int = 0
) -> tuple[FaceMLLMForConditionalGeneration, FaceProcessor, Bases]:
    """Load the parts and join them with a fresh projector.

    Args:
        bases: the references; fingerprints already set must match what is found.
        llm_dtype: of the frozen LLM weights; the tower stays fp32, the projector too.
        seed: of the projector's first weights.

    Returns:
        The model, its processor and the bases with fingerprints filled in.
    """
    vision_folder, llm_folder = resolve(bases.vision), resolve(bases.llm)
    bases = _with_fingerprints(bases, vision_folder, llm_folder)
    tower = load_vision_tower(vision_folder)
    llm = _load_llm(llm_folder, llm_dtype, bases.llm_quant)
    check_head(llm)
    tokenizer, image_processor = load_tokenizer(llm_folder), load_image_processor(vision_folder)
    processor = FaceProcessor(image_processor, tokenizer, 0, bases.system)
    processor.image_tokens = count_image_tokens(
        tower, processor.image_size, bases.vision_layer, bases.vision_select
    )
    config = FaceMLLMConfig(
        tower.config,
        llm.config,
        vision_layer=bases.vision_layer,
        vision_select=bases.vision_select,
        image_tokens=processor.image_tokens,
        image_token_id=processor.image_token_id,
        projector_hidden=bases.projector_hidden,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FaceMLLMForConditionalGeneration(config, tower, llm)
    align(model)  # as in training, or answers differ in the last bit
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.pad_id
    return model, processor, bases


def _load_llm(folder: Path, dtype: torch.dtype, quant: str = "none") -> torch.nn.Module:
    # torch's fused CPU kernel is slow under a 4-D mask; plain products save a quarter of a step
    on_cpu = choose_hardware().device == "cpu"
    loading = nf4_loading(dtype) if quant == "nf4" else {}
    try:
        llm = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager" if on_cpu else "sdpa", **loading
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a causal LLM this transformers version can load ({brief(error)})",
            "give a Hugging Face causal LLM folder or id",
        ) from error
    keep_exact(llm)
    if on_cpu and runs_blocks(llm):
        llm.set_attn_implementation(BLOCKS)
    return llm


def _with_fingerprints(bases: Bases, vision_folder: Path, llm_folder: Path) -> Bases:
    found = {
        "vision_fingerprint": folder_fingerprint(vision_folder),
        "llm_fingerprint": folder_fingerprint(llm_folder),
    }
    for key, value in found.items():
        wanted = getattr(bases, key)
        if wanted and wanted != value:
            reference = bases.vision if key.startswith("vision") else bases.llm
            raise UserError(
                f"{reference} is not the model this artifact was trained on "
                f"(fingerprint {value[:12]}, expected {wanted[:12]})",
                "point the reference at the original weights",
            )
    return Bases(**{**bases.to_json(), **found})


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the architecture and, of each weight file, size, header and both ends.

    Reading the ends keeps it quick for a 14 GB model and still tells two trainings apart.
    """
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no readable config.json, so no model ({brief(error)})",
            "give the folder of a Hugging Face model",
        ) from error
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
        config.pop(key, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()
