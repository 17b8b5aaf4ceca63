"""Seconds per step of a stage with the frozen tower live and with `cache_features: true`.

    python benchmarks/cached_features.py stage1_align stage2_vqa --steps 12 [--vit]

Trains an embedded stage for a few steps twice in one process and prints one JSON line a stage. The
first steps are not counted, nor is filling the cache: that is paid once for all stages and epochs.
The pictures are noise, only their number and size matter here.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_pipeline.records import QA, FaceRecord, write_dataset
from face_mllm.config import StageConfig
from face_mllm.configio import load_yaml_model
from face_mllm.train import train

WARM_UP = 3


def noise_dataset(folder: Path, faces: int, questions: int, size: int = 224) -> Path:
    """A built dataset of noise pictures with yes/no questions and a caption each."""
    rng = np.random.default_rng(0)
    with write_dataset(folder) as writer:
        for number in range(faces):
            buffer = io.BytesIO()
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG")
            qa = [
                QA("attribute", f"a{n}", f"Attribute {n}?", "yes" if rng.random() < 0.5 else "no")
                for n in range(questions)
            ]
            qa.append(QA("caption", "all", "Describe this face.", "A young woman smiling."))
            face = FaceRecord(f"n{number}", "noise", "train", "", buffer.getvalue(), {}, qa=(*qa,))
            writer.add(face)
        (writer.folder / "manifest.json").write_text('{"holdout_attributes": []}')
    return folder


def vit_tower(folder: Path) -> Path:
    """A tower of CLIP ViT-B/16's shape, randomly initialised: its time is that of the real one."""
    shape = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    CLIPVisionModel(shape).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def seconds_per_step(config: StageConfig) -> tuple[float, float]:
    """Median seconds of a step after warm-up: by the clock, and of processor time."""
    stamps: list[tuple[float, float]] = []

    def told(done: int, total: int, text: str) -> None:
        if text.startswith("loss"):
            stamps.append((time.perf_counter(), time.process_time()))

    train(config, told)
    wall, processor = np.median(np.diff(stamps, axis=0)[WARM_UP:], axis=0)
    return float(wall), float(processor)


def measure(name: str, folder: Path, steps: int, overrides: list[str]) -> dict[str, str | float]:
    """One embedded stage with its tower live, then with cached features."""
    settings = [f"data={folder / 'data'}", f"max_steps={steps}", "save_steps=0", *overrides]
    if name != "stage1_align":  # a fresh projector does: only speed counts
        settings += ["init_from=null", "vision.model=embedded:face-clip"]
        settings += ["llm.model=embedded:smollm2"]
    settings += ["projector.lexical_steps=0", "log_steps=1"]
    found = {}
    for case, cached in (("live", "false"), ("cached", "true")):
        places = [f"out={folder / name / case}", f"cache_features={cached}"]
        config = load_yaml_model(f"embedded/{name}", StageConfig, [*settings, *places])
        found[case] = seconds_per_step(config)
    return {
        "bench": "cached_features",
        "case": f"embedded/{name}",
        "ours": round(found["cached"][0], 4),
        "rival": round(found["live"][0], 4),
        "rival_name": "live tower",
        "unit": "s/step",
        "ratio": round(found["live"][0] / found["cached"][0], 3),
        "ratio_processor_time": round(found["live"][1] / found["cached"][1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=["stage1_align", "stage2_vqa"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--vit", action="store_true", help="a tower of ViT-B/16's shape instead")
    parser.add_argument("--set", nargs="*", default=[], help="key=value of the stage config")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        noise_dataset(Path(folder) / "data", faces=64, questions=16)
        if arguments.vit:
            arguments.set.append(f"vision.model={vit_tower(Path(folder) / 'vit')}")
        for stage in arguments.stages:
            row = measure(stage, Path(folder), arguments.steps, arguments.set)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
