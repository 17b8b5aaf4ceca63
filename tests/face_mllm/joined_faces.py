"""Faces whose colour is their expression, with questions, and tiny experts that look at them."""

import json

import numpy as np
import torch
from mask_fer_faces import COLOURS, picture, write_clip
from safetensors.torch import save_file

from data_pipeline.questions.question_set import load_set
from data_pipeline.records import QA, FaceRecord, write_dataset
from face_mllm.compose import folder_fingerprint
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert

CLASSES = ("neutral", "happiness", "anger")
CHOICES = ("neutral", "happiness", "sadness", "anger", "surprise", "disgust", "fear")
WIDTH, TEACHER = 24, 16


def write_faces(root, counts=None, seed=0):
    """Every third face is of a class; one training face in six has no expression."""
    rng = np.random.default_rng(seed)
    with write_dataset(root) as writer:
        for split, count in (counts or {"train": 24, "val": 18, "test": 12}).items():
            for k in range(count):
                word = CLASSES[k % 3]
                labels = {"expression": word, "age": 30.0} if k % 6 != 5 else {"age": 30.0}
                qa = [QA("age", "all", "How old?", "30 years")]
                if "expression" in labels:
                    qa.append(QA("expression", "all", "Which expression?", word, CHOICES))
                name = f"toy_{split}_{k}"
                image = picture(COLOURS[word], rng)
                writer.add(FaceRecord(name, "toy", split, name, image, labels, qa=tuple(qa)))
        manifest = {"seed": seed, "sources": [{"source": "toy", "protocol": "toy/all"}]}
        manifest["question_set"] = load_set("compact").model_dump(mode="json")
        (writer.folder / "manifest.json").write_text(json.dumps(manifest))
    return root


def write_mask_fer(folder, clip, data, **mask):
    """An untrained mask-FER that says it was trained on ``data``."""
    tiny = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], **mask}
    given = {"data": data, "out": folder, "classes": CLASSES, "seed": 1, "mask": tiny}
    given |= {"clip": {"model": str(clip)}, "epochs": 1, "batch_size": 6, "precision": "fp32"}
    config = MaskFerConfig.model_validate(given)
    expert = MaskFerExpert.fresh(config)
    with torch.no_grad():
        expert.model.fc.weight.mul_(8)  # an opinion
    expert.training = {"config": config.model_dump(mode="json"), "data": str(data)}
    expert.training |= {"data_fingerprint": "unknown", "class_counts": [1] * len(CLASSES)}
    folder.mkdir()
    expert.save(folder)
    return folder


def write_exp_clip(folder, clip):
    """An Exp-CLIP head of random weights on a CLIP with a tokenizer."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(2)
    save_file(
        {"mlp.weight": torch.randn(TEACHER, WIDTH, generator=draw)}, folder / "exp_clip.safetensors"
    )
    info = {"clip": str(clip), "clip_fingerprint": folder_fingerprint(clip)}
    (folder / "expert.json").write_text(json.dumps({**info, "paper_preprocess": False}))
    return folder


__all__ = ["write_clip"]
