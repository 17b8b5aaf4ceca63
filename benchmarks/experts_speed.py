"""Training of the experts' heads on cached features, faces a second; the rival runs CLIP each time.

    python benchmarks/experts_speed.py [--json]

Ours takes both features of a face from the cache. The rival is how the released code trains: the
frozen CLIP sees every face again at every step, and the head then takes the same step. Its figure
leaves out the teacher, which the released code runs anew as well: the ratio is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from face_mllm.experts.exp_clip.config import ExpClipConfig, TeacherConfig
from face_mllm.experts.exp_clip.fit import fit
from face_mllm.features import FrozenClip
from face_mllm.hardware import choose_hardware

FACES, BATCH, SCALE = 8192, 512, 100.0
WIDTHS = {"embedded (128 -> 576)": (128, 576), "paper (512 -> 4096)": (512, 4096)}


def cached(clip_width: int, teacher_width: int, epochs: int) -> float:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(FACES, clip_width, generator=generator)
    target = torch.randn(FACES, teacher_width, generator=generator)
    target = torch.nn.functional.normalize(target, dim=-1).half()
    config = ExpClipConfig(
        data=(Path(),), out=Path(), clip="", teacher=TeacherConfig(kind="text", model=""),
        epochs=epochs, batch_size=BATCH, log_steps=10**6,
    )  # fmt: skip
    best = 0.0
    for _ in range(3):  # the first warms up
        fitted = fit(student, target, SCALE, config)
        best = max(best, fitted.faces_seen / fitted.seconds)
    return best


def online(clip: FrozenClip, head_rate: float) -> float:
    """CLIP's passes and the head's step one after the other."""
    pixels = torch.randn(64, 3, clip.size, clip.size)
    clip.forward(pixels)
    started = time.perf_counter()
    clip.forward(pixels)
    seconds = (time.perf_counter() - started) / len(pixels)
    return 1 / (seconds + 1 / head_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    hardware = choose_hardware()
    torch.set_num_threads(hardware.threads)
    clip = FrozenClip("embedded:face-clip")
    if not arguments.json:
        print(f"{hardware.describe()}; batches of {BATCH}; rival: embedded:face-clip each time")
    for case, widths in WIDTHS.items():
        ours = cached(*widths, arguments.epochs)
        rival = online(clip, ours)
        row = {"bench": "experts_speed", "case": case, "ours": round(ours), "rival": round(rival)}
        row |= {"rival_name": "CLIP run at every step", "unit": "faces/s"}
        row |= {"ratio": round(ours / rival, 1)}
        print(json.dumps(row) if arguments.json else f"{case}: {ours:,.0f} faces/s, "
              f"{rival:,.0f} with CLIP at every step, ratio {ours / rival:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
