"""What both sides of against_trl.py share: one tower, one LLM, one set of faces and questions.

Ours reads them as a built dataset and two folders; the rivals get the same weights as a
LlavaForConditionalGeneration and the same pictures and texts as a Hugging Face dataset.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List
from peft import LoraConfig, get_peft_model
from PIL import Image as Pillow
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_pipeline.records import QA, FaceRecord, load_split, write_dataset
from face_mllm.compose import Bases, compose
from face_mllm.config import LoraSettings, StageConfig
from face_mllm.references import resolve

# image tokens -> the tower that makes them: the shapes of CLIP ViT-B/16 and of CLIP ViT-L/14-336
TOWERS = {
    196: {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    576: {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14},
}
# fmt: off
ATTRIBUTES = (  # CelebA's forty
    "a 5 o'clock shadow", "arched eyebrows", "an attractive face", "bags under the eyes",
    "a bald head", "bangs", "big lips", "a big nose", "black hair", "blond hair",
    "a blurry picture", "brown hair", "bushy eyebrows", "a chubby face", "a double chin",
    "eyeglasses", "a goatee", "gray hair", "heavy makeup", "high cheekbones", "a male face",
    "a slightly open mouth", "a mustache", "narrow eyes", "no beard", "an oval face",
    "pale skin", "a pointy nose", "a receding hairline", "rosy cheeks", "sideburns", "a smile",
    "straight hair", "wavy hair", "earrings", "a hat", "lipstick", "a necklace", "a necktie",
    "a young face",
)
# fmt: on
LAYER = -2  # of the tower, as LLaVA-1.5
LORA = LoraSettings()
# SmolLM2's template for contents in parts, the line break before a message instead of after it:
# so the text is the same and the loss ends with <|im_end|> on both sides
PLACEHOLDER = "<file_sep>"  # a token SmolLM2 has and never uses: LLaVA wants one that exists
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>' }}{% endif %}"
    "{% for message in messages %}{% if not loop.first or message['role'] != 'system' %}{{ '\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<file_sep>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Parts:
    """Folders of the shared parts.

    Attributes:
        tower, llm: weights.
        data: built dataset.
        dtype: of the LLM's frozen weights; with bfloat16 both sides train under autocast.
        device: ``cpu`` or ``cuda``.
    """

    tower: str
    llm: str
    data: str
    dtype: str = "bfloat16"
    device: str = "cpu"


def make_parts(
    folder: Path, image_tokens: int, questions: int, faces: int, llm: str, device: str
) -> Parts:
    """Write tower, faces and, for ``7b``, the LLM; what is there already is kept."""
    tower = folder / f"tower{image_tokens}"
    if not tower.exists():
        _write_tower(tower, image_tokens)
    data = folder / f"faces{image_tokens}_{questions}"
    if not data.exists():
        _write_faces(data, faces, questions, TOWERS[image_tokens]["image_size"])
    llm_folder = resolve("embedded:smollm2")
    if llm == "7b":
        llm_folder = _write_7b(folder / "llm7b", llm_folder)
    elif llm != "smollm2":
        llm_folder = resolve(llm)
    return Parts(str(tower), str(llm_folder), str(data), device=device)


def _write_tower(folder: Path, image_tokens: int) -> None:
    """A random tower of the real one's shape: its time is that of the real one."""
    shape = TOWERS[image_tokens]
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        **shape,
        intermediate_size=4 * shape["hidden_size"],
        num_attention_heads=shape["hidden_size"] // 64,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    side = shape["image_size"]
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def _write_faces(folder: Path, faces: int, questions: int, side: int) -> None:
    """Noise pictures with yes/no questions: only their number and size matter here."""
    rng = np.random.default_rng(0)
    with write_dataset(folder) as writer:
        for number in range(faces):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Pillow.fromarray(pixels).save(buffer, "JPEG")
            qa = [
                QA(
                    "attribute",
                    f"a{place}",
                    f"Does this person have {name}?",
                    "yes" if rng.random() < 0.5 else "no",
                )
                for place, name in enumerate(ATTRIBUTES[:questions])
            ]
            writer.add(FaceRecord(f"n{number}", "noise", "train", "", buffer.getvalue(), {}, qa=qa))
        (writer.folder / "manifest.json").write_text('{"holdout_attributes": []}')


def _write_7b(folder: Path, tokenizer: Path) -> Path:
    """A random LLM of Llama-2-7B's shape in bf16 with SmolLM2's vocabulary and template."""
    if not folder.exists():
        config = LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            vocab_size=AutoConfig.from_pretrained(tokenizer).vocab_size,
            dtype="bfloat16",
        )
        torch.set_default_dtype(torch.bfloat16)
        LlamaForCausalLM(config).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def stage(parts: Parts, out: Path, questions: int, **settings: Any) -> StageConfig:
    """Our side as a stage: LoRA on the LLM, projector trained, tower frozen."""
    return StageConfig.model_validate(
        {
            "stage": "against_trl",
            "data": parts.data,
            "out": out,
            "vision": {"model": parts.tower, "layer": LAYER, "select": "patch"},
            "llm": {"model": parts.llm, "train": "lora", "lora": LORA.model_dump()},
            "max_questions_per_face": questions,
            "precision": "bf16" if parts.dtype == "bfloat16" else "fp32",
            "schedule": "constant",
            "warmup": 0.0,
            "log_steps": 1,
            **settings,
        }
    )


def llava(parts: Parts, attention: str) -> tuple[Any, LlavaProcessor]:
    """The same weights as a LLaVA model of transformers with PEFT's LoRA, and its processor."""
    ours, processor, _ = compose(
        Bases(parts.tower, parts.llm, LAYER, "patch"), getattr(torch, parts.dtype)
    )
    llm = AutoModelForCausalLM.from_pretrained(
        parts.llm, dtype=getattr(torch, parts.dtype), attn_implementation=attention
    )
    config = LlavaConfig(
        vision_config=ours.vision_tower.config,
        text_config=llm.config,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(PLACEHOLDER),
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=processor.image_tokens,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = ours.vision_tower
    model.model.language_model = llm.get_decoder()
    model.lm_head = llm.get_output_embeddings()
    joint = model.model.multi_modal_projector.to_empty(device="cpu")
    for theirs, mine in ((joint.linear_1, ours.projector[0]), (joint.linear_2, ours.projector[2])):
        theirs.load_state_dict(mine.state_dict())
    names = "|".join(LORA.targets)
    model = get_peft_model(
        model.requires_grad_(False),
        LoraConfig(
            r=LORA.r,
            lora_alpha=LORA.alpha,
            lora_dropout=LORA.dropout,
            target_modules=rf".*language_model\..*\.({names})",
        ),
    )
    model.base_model.model.model.multi_modal_projector.requires_grad_(True)
    tokenizer = processor.tokenizer
    tokenizer.pad_token_id = processor.pad_id
    theirs = LlavaProcessor(
        processor.image_processor,
        tokenizer,
        patch_size=ours.vision_tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=PLACEHOLDER,
        chat_template=TEMPLATE,
    )
    return model, theirs


def conversations(data: str, multi_turn: bool = False) -> Dataset:
    """The faces as conversations: one a question, or all questions of a face in one."""
    rows = []
    for row in load_split(Path(data), "train"):
        face = FaceRecord.from_row(row)
        turns = [
            (
                {"role": "user", "content": qa.question},
                {"role": "assistant", "content": qa.answer},
            )
            for qa in face.qa
        ]
        picture = [{"bytes": face.image, "path": None}]
        if multi_turn:
            rows.append({"images": picture, "messages": [part for turn in turns for part in turn]})
        else:
            rows += [{"images": picture, "prompt": [q], "completion": [a]} for q, a in turns]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def canonical(name: str) -> str:
    """A trained parameter's name without what the two models call its surroundings."""
    found = re.search(r"layers\.\d+\..*", name)
    if found and "lora_" in name:
        return found.group()
    first = "projector.0." in name or "linear_1." in name
    return f"projector.{'first' if first else 'second'}.{name.rsplit('.', 1)[-1]}"


def dumped(parts: Parts) -> str:
    """Parts for a command line."""
    return json.dumps(parts.__dict__)
