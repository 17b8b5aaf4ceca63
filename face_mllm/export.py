"""Export: adapters folded into the weights, proven to answer as before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from rich.console import Console

from face_mllm.artifact import (
    QUESTIONS_FILE,
    Artifact,
    join_inside,
    load_artifact,
    load_weights,
    read_artifact,
    save_artifact,
)
from face_mllm.compose import compose
from face_mllm.errors import UserError
from face_mllm.experts.joined.fusion import FUSION_FILE
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.processing import FaceProcessor
from face_mllm.outputs import check_out
from face_mllm.progress import notice
from face_mllm.scoring import LikelihoodScorer

console = Console(stderr=True)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# nats an answer may move by: rounding of fp32 sums, and of weights stored in bf16
TOLERANCE = {"fp32": 1e-3, "bf16": 0.25}
_PROBE = [("Is this person smiling?", ("yes", "no")), ("How old is this person?", ("35 years",))]


def export_merged(folder: Path | str, out: Path, dtype: str = "fp32") -> Path:
    """Write an artifact whose adapters are folded into the weights of their parts.

    An NF4 base is unpacked first, so the merged weights are those the adapter was trained on.
    The merged model is compared with the original on a probe before anything is kept.

    Args:
        folder: artifact with at least one adapter.
        out: folder to write.
        dtype: ``fp32`` or ``bf16``, of the stored weights.

    Raises:
        UserError: nothing to merge, ``out`` in use, or merged answers that differ.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", f"choose one of {', '.join(DTYPES)}")
    check_out(out)
    if not read_artifact(folder).adapters:
        raise UserError(f"{folder}: no adapter to merge", "it is whole already; use it as it is")
    notice("reading the model")
    model, processor, artifact = load_artifact(folder, torch.float32)
    before = probe(model, processor)
    del model
    model, processor, merged = merge(folder, artifact, DTYPES[dtype])
    moved = float(np.abs(probe(model, processor) - before).max())
    console.print(f"[dim]merged answers differ by at most {moved:.2g} nats from the adapter's")
    if not moved <= TOLERANCE[dtype]:
        raise UserError(
            f"{folder}: merged answers differ by {moved:.3g} nats", "use the artifact unmerged"
        )
    kept = [name for name in (QUESTIONS_FILE, FUSION_FILE) if (folder / name).exists()]
    extra = {name: (folder / name).read_text() for name in kept}
    save_artifact(model, processor, merged, out, extra_files=extra)
    return out


def merge(
    folder: Path, artifact: Artifact, dtype: torch.dtype
) -> tuple[FaceMLLMForConditionalGeneration, FaceProcessor, Artifact]:
    """Model with plain layers only, and the artifact that describes it."""
    model, processor, _ = compose(artifact.bases, torch.float32)
    if artifact.bases.llm_quant != "none":
        model.language_model = model.language_model.dequantize()
        model.language_model.to(torch.float32)
    join_inside(model, processor, artifact, folder)
    load_weights(model, artifact, folder)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)  # refuses weights that are not finite
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    for part in artifact.adapters:
        module = {"llm": model.language_model, "vision": model.vision_tower}[part]
        module.to(dtype if part == "llm" else torch.float32)
    merged = dataclasses.replace(
        artifact,
        bases=dataclasses.replace(artifact.bases, llm_quant="none"),
        trained=sorted({*artifact.trained, *artifact.adapters}),
        adapters=[],
    )
    return model.eval(), processor, merged


def probe(model: FaceMLLMForConditionalGeneration, processor: FaceProcessor) -> np.ndarray:
    """Log-likelihoods of a few answers about a fixed picture of noise."""
    height, width = processor.image_size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    scores = LikelihoodScorer(model, processor).score(Image.fromarray(noise), _PROBE)
    return np.concatenate(scores)
