"""``export --format llava``: a folder that stock ``transformers`` loads, with the same logits.

The arrangement is LLaVA-1.5's (Liu et al., arXiv 2310.03744): a ViT's patch states, a 2-layer GELU
projector of the LLM's width, a causal LLM. Adapters are folded into the weights. What has no
counterpart there is refused: CNN maps, a projector of another inner width, an LLM that does
something to its logits, and an expert's token. The verdict of an expert is text, so it can travel
as text: whoever calls the exported model puts it before the question.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from data_pipeline.records import whole_folder
from face_mllm.artifact import Artifact, read_artifact
from face_mllm.errors import UserError
from face_mllm.experts.joined.settings import ExpertBase
from face_mllm.export import DTYPES, merge
from face_mllm.model import FaceMLLMForConditionalGeneration
from face_mllm.model.heads import logit_scaling
from face_mllm.model.processing import IMAGE_TOKEN, FaceProcessor
from face_mllm.model.vision import HAS_CLASS_TOKEN
from face_mllm.outputs import check_out
from face_mllm.progress import notice

console = Console(stderr=True)
TOLERANCE = 1e-3  # largest difference of a logit in fp32, as a share of their spread


def export_llava(folder: Path | str, out: Path, dtype: str = "fp32") -> Path:
    """Write an artifact as a LLaVA checkpoint, proven on a probe before it is kept.

    Args:
        folder: artifact, without an expert token.
        out: folder to write.
        dtype: ``fp32`` or ``bf16``, of the stored weights.

    Raises:
        UserError: a part that LLaVA has no counterpart for, ``out`` in use, or other logits.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", f"choose one of {', '.join(DTYPES)}")
    artifact = read_artifact(folder)
    check_travels(artifact, folder)
    check_out(out)
    notice("reading the model")
    model, processor, _ = merge(Path(folder), artifact, torch.float32)
    check_counterparts(model)
    with torch.no_grad():
        made = llava_of(model, processor)
        check_logits(model, made, processor)
    with whole_folder(out) as partial:
        made.to(DTYPES[dtype]).save_pretrained(partial)
        llava_processor(model, processor).save_pretrained(partial)
        (partial / "README.md").write_text(card(artifact, processor))
    if artifact.expert:
        console.print(f"[yellow]note[/] {left_behind(artifact)}")
    return out


def check_travels(artifact: Artifact, folder: Path | str) -> None:
    """An expert token is no part of LLaVA.

    Raises:
        UserError: the artifact has one.
    """
    if artifact.expert and artifact.expert.token:
        raise UserError(
            f"{folder}: has an expert token, which cannot travel to LLaVA's format",
            "export a stage trained with expert.token: false; its verdict may be text "
            "(expert.text: true)",
        )


def check_counterparts(model: FaceMLLMForConditionalGeneration) -> None:
    """Tower, projector and head must be such as LLaVA has.

    Raises:
        UserError: naming the part that is not.
    """
    config = model.config
    kind = config.vision_config.model_type
    if not hasattr(config.vision_config, "patch_size") or hasattr(
        config.vision_config, "hidden_sizes"
    ):
        raise UserError(
            f"the vision tower is a {kind}: LLaVA reads the patch states of a ViT",
            "train on a CLIP or SigLIP ViT to export to LLaVA's format",
        )
    width = config.text_config.hidden_size
    if config.projector_hidden not in (0, width):
        raise UserError(
            f"the projector is {config.projector_hidden} wide inside, LLaVA's is as the LLM, "
            f"{width}",
            "train with projector.hidden: 0 to export to LLaVA's format",
        )
    head = model.get_output_embeddings()
    if logit_scaling(model.language_model.config) or getattr(head, "bias", None) is not None:
        raise UserError(
            f"the LLM ({config.text_config.model_type}) scales its logits, LLaVA's head does not",
            "use a Llama, Vicuna, Qwen, Mistral or SmolLM to export to LLaVA's format",
        )


def llava_of(
    model: FaceMLLMForConditionalGeneration, processor: FaceProcessor
) -> LlavaForConditionalGeneration:
    """The same weights in LLaVA's classes.

    The placeholder lies outside the LLM's vocabulary, and LLaVA looks it up before it is replaced:
    the embeddings get rows of zeros up to it, whose logits generation suppresses.
    """
    text = type(model.config.text_config).from_dict(model.config.text_config.to_dict())
    text.vocab_size = max(text.vocab_size, processor.image_token_id + 1)
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=model.config.image_tokens,
        vision_feature_select_strategy=strategy(model),
        vision_feature_layer=model.config.vision_layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    made = LlavaForConditionalGeneration(config).eval()
    inner = made.model
    _copy(model.vision_tower, inner.vision_tower, "vision tower")
    for ours, theirs in ((0, "linear_1"), (2, "linear_2")):
        layer = getattr(inner.multi_modal_projector, theirs)
        layer.load_state_dict(model.projector[ours].state_dict())
    decoder = model.language_model.get_decoder()
    name = _embedding_name(decoder)
    _copy(decoder, inner.language_model, "LLM", {name: text.vocab_size})
    head: torch.Tensor = model.get_output_embeddings().state_dict()["weight"]
    made.lm_head.weight.copy_(_longer(head, text.vocab_size))
    made.tie_weights()
    made.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    made.generation_config.pad_token_id = processor.pad_id
    made.generation_config.suppress_tokens = [
        *range(model.config.text_config.vocab_size, text.vocab_size)
    ] or None
    return made


def strategy(model: FaceMLLMForConditionalGeneration) -> str:
    """LLaVA's word for which states are fed: ``default`` drops the first, a class token."""
    drops = model.config.vision_select == "patch"
    has_one = model.vision_tower.config.model_type in HAS_CLASS_TOKEN
    return "default" if drops and has_one else "full"


def _embedding_name(decoder: Any) -> str:
    table = decoder.get_input_embeddings()
    return next(f"{name}.weight" for name, module in decoder.named_modules() if module is table)


def _longer(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return nn.functional.pad(weight, (0, 0, 0, rows - len(weight)))


def _copy(
    source: nn.Module, target: nn.Module, what: str, lengthen: dict[str, int] | None = None
) -> None:
    """All weights of one module into another of the same names; embeddings may grow."""
    state = source.state_dict()
    for name, rows in (lengthen or {}).items():
        state[name] = _longer(state[name], rows)
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"the {what} ({type(source).__name__}) is not what LLaVA builds for its config "
            f"({type(target).__name__})",
            "use a CLIP or SigLIP ViT and a Llama-like LLM",
        ) from error


def check_logits(
    model: FaceMLLMForConditionalGeneration,
    made: LlavaForConditionalGeneration,
    processor: FaceProcessor,
) -> None:
    """Compare the logits of one conversation about a picture of noise.

    Raises:
        UserError: they differ by more than rounding.
    """
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *processor.image_size, generator=draw)
    ids = torch.tensor([processor.prompt_ids([("Is this person smiling?", None)])])
    ours = model(input_ids=ids, pixel_values=pixels).logits
    theirs = made(input_ids=ids, pixel_values=pixels).logits[..., : ours.shape[-1]]
    apart = float((ours - theirs).abs().max() / (ours.max() - ours.min()))
    console.print(f"[dim]logits in LLaVA's classes differ by at most {apart:.1e} of their spread")
    if not apart <= TOLERANCE:
        raise UserError(
            f"the logits in LLaVA's classes differ by {apart:.2g} of their spread",
            "this LLM or tower cannot be exported to LLaVA's format",
        )


def llava_processor(
    model: FaceMLLMForConditionalGeneration, processor: FaceProcessor
) -> LlavaProcessor:
    """LLaVA's processor with this artifact's picture rules, tokenizer and chat template."""
    patches = model.config.vision_config.patch_size
    height, width = processor.image_size
    cells = (height // patches) * (width // patches)
    dropped = strategy(model) == "default"
    return LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=patches,
        vision_feature_select_strategy=strategy(model),
        chat_template=processor.tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=model.config.image_tokens + dropped - cells,
    )


def left_behind(artifact: Artifact) -> str:
    """What of an expert does not travel."""
    words = []
    if artifact.expert and artifact.expert.fusion:
        words.append("late fusion and calibration stay behind")
    if artifact.expert and artifact.expert.text:
        words.append(
            "the model was trained with its verdict before each question, which the caller must "
            "put there (README.md)"
        )
    return "; ".join(words)


def words_of(expert: ExpertBase) -> list[str]:
    """How a caller gets the verdict that stands before each question, where there was one."""
    if not expert.text:
        return []
    ways = f"text=True, most={expert.most}"
    if expert.kind == "exp_clip":
        ways += f", prompt_type={expert.prompt_type}, classes={expert.classes}"
    return [
        "It comes from the artifact's folder `expert`:",
        "",
        "```python",
        "from face_mllm.experts.joined.expert import open_expert",
        "",
        f'expert = open_expert("ARTIFACT/expert", {ways})',
        '_, (words,) = expert.view([Image.open("face.jpg").convert("RGB")])',
        "```",
    ]


def card(artifact: Artifact, processor: FaceProcessor) -> str:
    """README.md of the folder: how to ask it in stock transformers."""
    question = "<image>\\nWhich expression?"
    if artifact.expert and artifact.expert.text:
        question = "<image>\\nExpert: happiness 0.82, surprise 0.11.\\nWhich expression?"
    turns = [{"role": "system", "content": processor.system}] if processor.system else []
    asked = [*turns, {"role": "user", "content": "QUESTION"}]
    said = json.dumps(asked).replace(json.dumps("QUESTION"), "question")
    lines = [
        "---",
        "library_name: transformers",
        "tags: [llava, face]",
        "---",
        "# Exported from face-mllm",
        "",
        f"Vision tower `{artifact.bases.vision}`, LLM `{artifact.bases.llm}`, in LLaVA's classes.",
        "",
        "```python",
        "from PIL import Image",
        "from transformers import AutoProcessor, LlavaForConditionalGeneration",
        "",
        'model = LlavaForConditionalGeneration.from_pretrained("FOLDER")',
        'processor = AutoProcessor.from_pretrained("FOLDER")',
        f'question = "{question}"',
        f"turns = {said}",
        "prompt = processor.tokenizer.apply_chat_template(",
        "    turns, tokenize=False, add_generation_prompt=True)",
        'inputs = processor(images=Image.open("face.jpg"), text=prompt, return_tensors="pt",',
        "                   add_special_tokens=False)",
        "answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0]",
        'print(processor.decode(answer[inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        "```",
        "",
    ]
    if artifact.expert:
        lines += [f"Of the expert: {left_behind(artifact)}.", *words_of(artifact.expert), ""]
    lines += [
        "Estimates about a face are not facts about a person: do not use them to identify, hire,",
        "police or diagnose anyone.",
    ]
    return "\n".join(lines) + "\n"
