"""Tiny labelled pictures whose colour is their class, and a tiny CLIP to freeze."""

import io
import json

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from data_pipeline.records import FaceRecord, write_dataset

COLOURS = {
    "neutral": (120, 120, 120),
    "happiness": (230, 200, 60),
    "anger": (200, 30, 30),
    "contempt": (180, 60, 40),
}
COUNTS = {"train": 36, "val": 12, "test": 12}


def picture(colour, rng):
    pixels = np.array(colour) + rng.integers(-25, 25, (40, 36, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_expressions(root, counts=COUNTS, seed=0, source="toy", shift=0):
    """Three classes in turn, and in every split one face of contempt and one without a label."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)[:3]
    with write_dataset(root) as writer:
        for split, count in counts.items():
            labels = [{"expression": names[k % 3]} for k in range(count)]
            labels += [{"expression": "contempt"}, {"age": 30.0}]
            for k, known in enumerate(labels):
                colour = np.array(COLOURS[known.get("expression", "neutral")]) + shift
                name = f"{source}_{split}_{k}"
                writer.add(FaceRecord(name, source, split, name, picture(colour, rng), known))
        manifest = {"sources": [{"source": source, "protocol": f"{source}/official"}]}
        (writer.folder / "manifest.json").write_text(json.dumps(manifest))
    return root


def write_clip(folder, image_processor, width=24):
    """A CLIP with random weights: its embedding still tells colours apart."""
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    side["num_attention_heads"] = 2
    config = CLIPConfig(
        vision_config={**side, "image_size": 32, "patch_size": 8},
        text_config={**side, "vocab_size": 50, "max_position_embeddings": 16},
        projection_dim=width,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder
