"""Teachers: frozen models that say in one vector what an instruction makes of a face.

Each turns N faces into (N, D), the plain mean of last hidden states over the positions its kind
calls for. Nothing is decoded and nothing is trained. BLIP-2 and text teachers are not even loaded
where all features are kept already: a head trains again without the memory of its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, Blip2ForConditionalGeneration

from face_mllm.artifact import load_artifact
from face_mllm.compose import folder_fingerprint
from face_mllm.errors import UserError, brief
from face_mllm.experts.exp_clip.config import TeacherConfig
from face_mllm.features import squash
from face_mllm.hardware import Hardware
from face_mllm.model.processing import FaceProcessor, load_image_processor, load_tokenizer
from face_mllm.references import resolve
from face_mllm.scoring import autocast


class Teacher(Protocol):
    """What trains a head.

    Attributes:
        reads: ``image`` or ``caption``: which of the two is handed over.
        identity: all that decides a feature beside the face, JSON-able.
    """

    reads: str
    identity: dict[str, Any]

    def features(self, faces: Sequence[Any]) -> torch.Tensor:
        """Features (N, D), fp32, of N pictures or captions."""


def load_teacher(
    config: TeacherConfig, hardware: Hardware, paper_preprocess: bool = False
) -> Teacher:
    """The teacher a config names.

    Args:
        hardware: device and number format it runs in.
        paper_preprocess: BLIP-2 sees the picture squashed and without mean and std. An artifact
            keeps its own pixels: it was aligned on them.
    """
    if config.kind == "blip2":
        return Blip2Teacher(config, hardware, paper_preprocess)
    if config.kind == "artifact":
        return ArtifactTeacher(config, hardware)
    return TextTeacher(config, hardware)


class Blip2Teacher:
    """The paper's: BLIP-2 whose language model is a T5; only its encoder runs.

    The Q-Former sees the picture alone; its projected queries stand before the embedded
    instruction (with end of sequence), and the mean is over all of these positions; with ``pool:
    instruction`` over the instruction's.
    """

    reads = "image"

    def __init__(
        self, config: TeacherConfig, hardware: Hardware, paper_preprocess: bool = False
    ) -> None:
        folder = resolve(config.model)
        self.batch, self.device, self.paper = config.batch_size, hardware.device, paper_preprocess
        self.whole, self.folder, self.hardware = config.pool != "instruction", folder, hardware
        _check_t5(folder)
        self.processor = load_image_processor(folder)
        ids = load_tokenizer(folder)(config.instruction, return_tensors="pt")["input_ids"]
        self.ids = ids.to(self.device)
        self.identity = _identity(config, folder, hardware) | {"paper_preprocess": paper_preprocess}

    @cached_property
    def model(self) -> Any:
        """Loaded for the first face whose feature is not kept yet."""
        return _blip2(self.folder, self.hardware)

    def features(self, faces: Sequence[Image.Image]) -> torch.Tensor:
        """Mean over query and instruction positions, (N, D)."""
        starts = range(0, len(faces), self.batch)
        return torch.cat([self._batch(faces[at : at + self.batch]) for at in starts])

    @torch.inference_mode()
    def _batch(self, faces: Sequence[Image.Image]) -> torch.Tensor:
        pixels = teacher_pixels(faces, self.processor, self.paper)
        given = pixels.to(self.device, self.model.dtype)
        queries = self.model.get_image_features(given).pooler_output
        t5 = self.model.language_model
        words = t5.get_input_embeddings()(self.ids).expand(len(faces), -1, -1)
        states = t5.get_encoder()(inputs_embeds=torch.cat([queries, words], 1)).last_hidden_state
        pooled = states if self.whole else states[:, queries.shape[1] :]
        return pooled.float().mean(1).cpu()


def _check_t5(folder: Path) -> None:
    """Refuse another model, or a BLIP-2 around a decoder, by its configuration alone."""
    try:
        kind = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no model ({brief(error)})", "check the path") from error
    if kind.model_type != "blip-2" or kind.use_decoder_only_language_model:
        raise UserError(
            f"{folder}: no BLIP-2 with an encoder (T5) inside",
            "give Salesforce/blip2-flan-t5-xl or -xxl, or choose teacher.kind: artifact",
        )


def _blip2(folder: Path, hardware: Hardware) -> Any:
    try:
        model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=hardware.torch_dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a BLIP-2 that loads ({error})", "check the model"
        ) from error
    return model.requires_grad_(False).eval().to(hardware.device)


def teacher_pixels(
    images: Sequence[Image.Image], processor: Any, paper_preprocess: bool
) -> torch.Tensor:
    """Pixels by the model's own processor, or squashed to its size and divided by 255 only."""
    if not paper_preprocess:
        return processor(list(images), return_tensors="pt")["pixel_values"]
    blank = processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    return squash(images, *blank.shape[-2:]).float() / 255


class ArtifactTeacher:
    """Any decoder LLM that sees the picture through an artifact of ``face-mllm train``.

    A causal model's early positions know nothing of later ones, so the picture stands first and
    the mean is over the instruction's positions only, each of which has seen all of the face.
    """

    reads = "image"

    def __init__(self, config: TeacherConfig, hardware: Hardware) -> None:
        model, self.processor, artifact = load_artifact(config.model, hardware.torch_dtype)
        self.model, self.batch, self.hardware = model, config.batch_size, hardware
        self.model.requires_grad_(False).to(hardware.device)
        ids = self.processor.prompt_ids([(config.instruction, None)])
        self.ids = torch.tensor([ids], device=hardware.device)
        first, after = instruction_span(self.processor, config.instruction)
        self.span = slice(0 if config.pool == "all" else first, after)
        self.identity = _identity(config, Path(config.model), hardware)
        self.identity["bases"] = artifact.bases.to_json()

    def features(self, faces: Sequence[Image.Image]) -> torch.Tensor:
        """Mean over instruction positions, (N, D)."""
        starts = range(0, len(faces), self.batch)
        return torch.cat([self._batch(faces[at : at + self.batch]) for at in starts])

    @torch.inference_mode()
    def _batch(self, faces: Sequence[Image.Image]) -> torch.Tensor:
        pixels = self.processor.pixels(faces).to(self.hardware.device)
        ids = self.ids.expand(len(faces), -1)
        with autocast(self.hardware.autocast, self.model.device.type):
            given, _ = self.processor.expert_view(faces)  # a token; words would move the span
            vectors = self.model.expert_vectors(given.get("expert_features"))
            embeds = self.model.embed(ids, pixels, expert_vectors=vectors)
            decoder = self.model.language_model.get_decoder()
            states = decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return states[:, self.span].float().mean(1).cpu()


def instruction_span(processor: FaceProcessor, instruction: str) -> tuple[int, int]:
    """First position of the instruction in the prompt, and the one after its last.

    Found by comparison with an empty instruction, so that it holds for any chat template.
    """
    ids = processor.prompt_ids([(instruction, None)])
    blank = processor.prompt_ids([("", None)])
    first = _common(ids, blank)
    last = min(_common(ids[::-1], blank[::-1]), len(blank) - first)
    if first >= len(ids) - last:
        raise UserError(
            f"the instruction {instruction!r} has no words", "write teacher.instruction"
        )
    return first, len(ids) - last


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


class TextTeacher:
    """A language model that reads a caption and then the instruction; it never sees the picture.

    An encoder's mean is over all positions; a causal model's over the instruction's.
    """

    reads = "caption"

    def __init__(self, config: TeacherConfig, hardware: Hardware) -> None:
        folder = resolve(config.model)
        self.config, self.device = config, hardware.device
        self.folder, self.hardware, self.tokenizer = folder, hardware, load_tokenizer(folder)
        self.whole = config.pool == "all" or (config.pool == "auto" and not _is_causal(folder))
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.identity = _identity(config, folder, hardware)

    @cached_property
    def model(self) -> Any:
        """Loaded for the first caption whose feature is not kept yet."""
        return _text_model(self.folder, self.hardware)

    def features(self, faces: Sequence[str]) -> torch.Tensor:
        """Mean over the positions of caption and instruction, or of the instruction, (N, D)."""
        order = sorted(range(len(faces)), key=lambda at: len(faces[at]))  # little padding
        size = self.config.batch_size
        parts = [
            self._batch([faces[at] for at in order[start : start + size]])
            for start in range(0, len(order), size)
        ]
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)

    @torch.inference_mode()
    def _batch(self, captions: Sequence[str]) -> torch.Tensor:
        texts = [f"{caption}\n{self.config.instruction}" for caption in captions]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if ids.shape[1] > self.config.max_tokens:  # cutting would lose the instruction
            raise UserError(
                f"a caption with its instruction has {ids.shape[1]} tokens",
                "raise teacher.max_tokens or shorten the captions",
            )
        out = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        kept = mask if self.whole else mask * self._after(captions, ids)
        states, weight = out.last_hidden_state.float().cpu(), kept.unsqueeze(-1).float()
        return (states * weight).sum(1) / weight.sum(1)

    def _after(self, captions: Sequence[str], ids: torch.Tensor) -> torch.Tensor:
        """1 at positions after the caption, whatever the tokenizer puts before and behind it."""
        heads = self.tokenizer([f"{caption}\n" for caption in captions])["input_ids"]
        pairs = zip(heads, ids.tolist(), strict=True)
        lengths = torch.tensor([_common(head, row) for head, row in pairs]).unsqueeze(1)
        return (torch.arange(ids.shape[1]) >= lengths).to(ids.dtype)


def _text_model(folder: Path, hardware: Hardware) -> Any:
    """The encoder of an encoder-decoder, else the bare model without its language head."""
    try:
        model = AutoModel.from_pretrained(folder, dtype=hardware.torch_dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: not a language model this transformers version can load ({error})",
            "give a Hugging Face encoder or LLM",
        ) from error
    inner = model.get_encoder() if model.config.is_encoder_decoder else model
    return inner.requires_grad_(False).eval().to(hardware.device)


def _is_causal(folder: Path) -> bool:
    """Whether the folder's own class is a causal language model."""
    names = AutoConfig.from_pretrained(folder).architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _identity(config: TeacherConfig, folder: Path, hardware: Hardware) -> dict[str, Any]:
    settings = config.model_dump(exclude={"model", "width", "batch_size", "max_tokens"})
    return settings | {"dtype": hardware.dtype, "weights": folder_fingerprint(folder)}
