"""Tiny CLIP, BLIP-2 and text models in folders, and faces whose colour is their expression."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_pipeline.records import FaceRecord, write_dataset
from face_mllm.experts.exp_clip.prompts import CLASSES, PROMPT_TYPES, prompts

WIDTH, TEACHER = 24, 32
TEXTS = [text for kind in PROMPT_TYPES for name in CLASSES for text in prompts(kind, name)]
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def word_tokenizer(**special) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that ends every text as CLIP and T5 do."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(
        [*TEXTS, "Describe the face . happy sad a of"],
        trainers.WordLevelTrainer(special_tokens=["<pad>", "<end>", "<unk>"]),
    )
    core.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", **special
    )


def write_clip(folder: Path) -> Path:
    """A CLIP of random weights: 16 px, joint space of 24."""
    torch.manual_seed(3)
    tokenizer = word_tokenizer(model_max_length=40)
    text = {**_SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    text |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
    vision = {**_SMALL, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder)
    return folder


def write_blip2(folder: Path) -> Path:
    """A BLIP-2 with a T5 of width 32 and 4 query tokens."""
    torch.manual_seed(4)
    tokenizer = word_tokenizer()
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_SMALL, image_size=16, patch_size=8).to_dict(),
        qformer_config=Blip2QFormerConfig(
            **_SMALL, vocab_size=10, encoder_hidden_size=32, max_position_embeddings=16
        ).to_dict(),
        text_config=T5Config(
            vocab_size=len(tokenizer) + 1,
            d_model=TEACHER,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=len(tokenizer),
    )
    model = Blip2ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # as initialised, the tower's weights are next to nothing
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """A text encoder."""
    torch.manual_seed(5)
    tokenizer = word_tokenizer()
    BertModel(BertConfig(vocab_size=len(tokenizer), **_SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def picture(kind: int, seed: int) -> bytes:
    """A noisy square whose colour is its class."""
    rng = np.random.default_rng(seed)
    base = np.array([[250, 40, 40], [40, 40, 250], [40, 250, 40]])[kind]
    pixels = np.clip(base + rng.integers(-40, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_faces(root: Path, train: int = 24, test: int = 12, frames: int = 1) -> Path:
    """Coloured faces; with several frames a subject is a clip."""
    with write_dataset(root) as writer:
        for split, count in (("train", train), ("test", test)):
            for face in range(count):
                kind, name = face % 3, f"{split}{face}"
                labels = {"expression": CLASSES[kind]} if face % 7 != 6 else {}
                caption = f"a face of {CLASSES[kind]}" + " ." * (face % 4)
                for frame in range(frames):
                    image = picture(kind, 1000 * face + frame)
                    row = FaceRecord(
                        f"{name}_{frame + 1}", "toy", split, name, image, labels, caption=caption
                    )
                    writer.add(row)
        manifest = {"sources": [{"source": "toy", "protocol": "toy/a"}]}
        (writer.folder / "manifest.json").write_text(json.dumps(manifest))
    return root


def relabelled(source: Path, folder: Path, split: str, labels: Callable[[int], dict]) -> Path:
    """A copy of a dataset whose k-th face of a split has the labels ``labels(k)``."""
    shutil.copytree(source, folder)
    path = folder / f"{split}-00000.parquet"
    table = pq.read_table(path)
    texts = pa.array([json.dumps(labels(k)) for k in range(len(table))], pa.string())
    at = table.schema.get_field_index("labels")
    pq.write_table(table.set_column(at, table.schema.field(at), texts), path)
    return folder
