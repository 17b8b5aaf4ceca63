"""The model card, written from what was done and measured."""

from __future__ import annotations

from collections import Counter
from typing import Any

from face_mllm.face_clip.config import FaceClipConfig
from face_mllm.face_clip.faces import Faces
from face_mllm.face_clip.model import FaceClipModel

HEADER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [face, clip, facial-expression, action-units]
---

# face-clip

A small CLIP for faces: a ResNet image tower and a causal text tower, {parameters:.1f} M parameters,
trained from scratch on labelled faces and captions written from their labels. It is made for
trying, testing and teaching the `face-mllm` pipeline without a model hub; it is no match for a
CLIP trained on photographs, and should not be used to judge real people.
"""

USE = """
## Use

```python
from face_mllm.face_clip import ZeroShot
ZeroShot("{folder}").zero_shot([image], [["a face with eyeglasses"], ["a face without eyeglasses"]])
```
`AutoModel`, `AutoTokenizer` and `AutoImageProcessor` load the folder too. Image embeddings need
`face_mllm.face_clip.FaceClipModel`: the stock dual encoder does not flatten a ResNet's pooled map.
The image tower reads {size} x {size} pixels (shorter side to {resize}, central crop); its last map
is the token grid of a multimodal LLM.
"""

CREDITS = {
    "fairface": "FairFace (Karkkainen and Joo, WACV 2021), CC BY 4.0",
    "portrait": "portrait photographs in the public domain",
}


def model_card(
    config: FaceClipConfig,
    model: FaceClipModel,
    train: Faces,
    val: Faces,
    steps: int,
    seconds: float,
    machine: str,
    figures: dict[str, Any] | None,
) -> str:
    """Return the README.md of the folder: data, settings, time and measured figures."""
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    parts = [
        HEADER.format(parameters=count),
        USE.format(folder="FOLDER", size=config.image.size, resize=config.image.resize),
        _data(config, train, val),
        _training(config, steps, seconds, machine),
        _figures(figures) if figures else "\nAn intermediate state; nothing was measured on it.\n",
    ]
    return "".join(parts)


def _data(config: FaceClipConfig, train: Faces, val: Faces) -> str:
    licences = dict(zip(train.sources, train.licences, strict=True))
    lines = ["\n## Data\n\n| source | train | val | licence |\n|---|---:|---:|---|\n"]
    held = Counter(val.sources)
    for source, count in sorted(Counter(train.sources).items()):
        licence = CREDITS.get(source, licences[source] or "see the dataset")
        lines.append(f"| {source} | {count} | {held[source]} | {licence} |\n")
    names = ", ".join(f"`{name}`" for name in config.holdout_attributes) or "nothing"
    lines.append(
        "\nTrain and val share no identity. Held out of every caption and every label loss, for "
        f"zero-shot tests: {names}.\n"
    )
    lines.append(f"\n{config.note}\n" if config.note else "")
    return "".join(lines)


def _training(config: FaceClipConfig, steps: int, seconds: float, machine: str) -> str:
    seen = steps * config.batch_size
    return (
        "\n## Training\n\n"
        f"`face-mllm train stage_configs/embedded/face_clip.yaml` with the settings in "
        f"`training.yaml`: seed {config.seed}, {steps} steps of {config.batch_size} faces "
        f"({seen:,} pictures seen), {seconds / 60:.0f} minutes on {machine}. Loss: symmetric "
        "InfoNCE with fresh captions each step, plus linear heads on the exact labels (not kept). "
        f"Then {config.locked.steps} steps of the text side alone against the locked image tower. "
        "The weights are an exponential moving average, stored as "
        f"{config.stored_dtype}.\n"
    )


def _figures(figures: dict[str, Any]) -> str:
    probe, shot, n = figures["probe"], figures["zero_shot"], figures["n"]
    age = probe["age_mae"]
    rows = [
        ("AU macro-F1 (intensity >= 2)", _mean(probe["action_unit_f1"]), "-"),
        (
            "AU balanced accuracy",
            "-",
            _mean(shot["action_unit_balanced_accuracy"]),
        ),
        (
            "expression UAR, 7 classes",
            _text(probe["expression_uar7"]),
            _text(shot["expression_uar7"]),
        ),
        (
            "attributes, mean balanced accuracy",
            _mean(probe["attribute_balanced_accuracy"]),
            _mean(shot["attribute_balanced_accuracy"]),
        ),
        (
            "held-out attributes, mean balanced accuracy",
            _mean(probe["held_out_balanced_accuracy"]),
            _mean(shot["held_out_balanced_accuracy"]),
        ),
        ("head pose MAE, degrees", _mean(probe["head_pose_mae"]), "-"),
        (
            "age MAE, years",
            f"{age['probe']:.2f} (mean predictor {age['mean_predictor']:.2f})" if age else "-",
            "-",
        ),
    ]
    head = (
        f"\n## Measured\n\nOn {n['val']} faces of {n['subjects']} identities outside training. "
        f"Linear probe: logistic or ridge regression on pooled features of {n['probe_train']} "
        "training faces. Zero-shot: prompts only.\n\n"
        "| | linear probe | zero-shot |\n|---|---:|---:|\n"
    )
    table = "".join(f"| {name} | {left} | {right} |\n" for name, left, right in rows)
    return head + table + _details(figures)


def _mean(scores: dict[str, float]) -> str:
    return _text(scores.get("mean"))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _details(figures: dict[str, Any]) -> str:
    probe, shot = figures["probe"], figures["zero_shot"]
    pairs = [
        ("AU", probe["action_unit_f1"], shot["action_unit_balanced_accuracy"]),
        ("attribute", probe["attribute_balanced_accuracy"], shot["attribute_balanced_accuracy"]),
        ("held-out", probe["held_out_balanced_accuracy"], shot["held_out_balanced_accuracy"]),
    ]
    lines = [
        "\n<details><summary>per label</summary>\n\n",
        "| | name | probe | zero-shot |\n|---|---|---:|---:|\n",
    ]
    for kind, left, right in pairs:
        names = sorted({*left, *right} - {"mean"})
        lines += [
            f"| {kind} | {n} | {_text(left.get(n))} | {_text(right.get(n))} |\n" for n in names
        ]
    lines += [
        f"| pose MAE | {axis} | {value:.2f} | - |\n"
        for axis, value in probe["head_pose_mae"].items()
    ]
    return "".join(
        [
            *lines,
            "\nProbe: F1 for AUs, balanced accuracy for attributes, as zero-shot throughout.\n",
            "\n</details>\n",
        ]
    )
