"""Our training against TRL's SFTTrainer and Hugging Face's Trainer on the same LLaVA-shaped model.

    pip install 'face-mllm[bench]'
    python benchmarks/against_trl.py                              # 1, 12, 40 questions; 196 tokens
    python benchmarks/against_trl.py --image-tokens 576 --questions 40
    python benchmarks/against_trl.py --device cuda --faces 16 --rival-batch 64 --steps 12
    python benchmarks/against_trl.py --device cuda --llm 7b --faces 8 --rival-batch 16 --steps 8

Same tower, projector, LLM weights, LoRA, dtype, optimiser, faces, questions and answers. First both
sides compute loss and gradients of the same questions in fp32, which must agree; then each trains
in a process of its own, in turn, and a JSON line says questions a second, peak memory and ratio.
The rivals take one conversation a question, as they isolate questions in no other way. `dialogue`
is TRL with all questions of a face as turns: faster, but not the same task, since later questions
read earlier answers. On one CPU thread `ratio_processor_time` is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from against_trl_parts import Parts, make_parts

WARM_UP = 1
CHECKED_FACES, CHECKED_QUESTIONS = 2, 3
LIMIT = 1e-3  # largest relative difference of losses and gradients in fp32
NAMES = {
    "trl": "TRL SFTTrainer, one conversation a question",
    "plain": "Hugging Face Trainer, one conversation a question",
    "dialogue": "TRL SFTTrainer, one dialogue a face (not isolated: another task)",
}


def child(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a process of its own and read its last line."""
    environment = {**os.environ, "FACE_MLLM_DEVICE": arguments["parts"]["device"]}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments['side']} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_child(text: str) -> None:
    """The other end of :func:`child`."""
    from against_trl_check import check
    from against_trl_sides import SIDES, llm_step

    given = json.loads(text)
    side, parts = given.pop("side"), Parts(**given.pop("parts"))
    with tempfile.TemporaryDirectory() as folder:
        if side == "check":
            found: dict[str, Any] = check(parts, Path(folder), given["questions"], CHECKED_FACES)
        elif side == "llm":
            found = llm_step(parts, Path(folder), **given)
        else:
            clock = SIDES[side](parts, Path(folder), **given)
            each = given["questions"] if side in ("ours", "dialogue") else 1
            found = clock.figures(given["batch"] * each, WARM_UP)
    print(json.dumps(found), flush=True)


def compare(parts: Parts, questions: int, options: argparse.Namespace) -> None:
    """All sides at one number of questions, in turn; print a line for each rival."""
    rivals = {}
    batch = options.faces if questions > 1 else options.rival_batch
    common = {"parts": parts.__dict__, "questions": questions, "steps": WARM_UP + options.steps}
    mine = child({**common, "side": "ours", "batch": batch})
    for side in options.rivals:
        faces = max(1, options.faces // 2) if side == "dialogue" else options.rival_batch
        if side == "dialogue" and questions == 1:
            continue
        rival = {**common, "side": side, "batch": faces, "attention": options.rival_attention}
        rivals[side] = child(rival)
    again = child({**common, "side": "ours", "batch": batch})  # the machine may have drifted
    for key in ("rate", "processor_rate", "peak_gib"):
        mine[key] = (mine[key] + again[key]) / 2
    for side, rival in rivals.items():
        row = {
            "bench": "against_trl",
            "case": f"{options.llm}, {options.image_tokens} image tokens, {questions} questions",
            "ours": round(mine["rate"], 3),
            "rival": round(rival["rate"], 3),
            "rival_name": NAMES[side],
            "unit": "QA/s",
            "ratio": round(mine["rate"] / rival["rate"], 2),
            "ratio_processor_time": round(mine["processor_rate"] / rival["processor_rate"], 2),
            "processor_rates": [
                round(mine["processor_rate"], 3),
                round(rival["processor_rate"], 3),
            ],
            "peak_gib": [round(side["peak_gib"], 2) for side in (mine, rival)],
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-tokens", type=int, default=196, choices=(196, 576))
    parser.add_argument("--questions", type=int, nargs="*", default=[1, 12, 40])
    parser.add_argument("--llm", default="smollm2", help="smollm2, 7b (random) or a reference")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--faces", type=int, default=2, help="faces a step of ours")
    parser.add_argument("--rival-batch", type=int, default=4, help="conversations a step")
    parser.add_argument("--rival-attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--rivals", nargs="*", default=list(NAMES), choices=tuple(NAMES))
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each side")
    parser.add_argument("--folder", type=Path, help="keeps towers and faces for the next call")
    parser.add_argument("--skip-check", action="store_true")
    parser.add_argument("--skip-llm", action="store_true", help="no share of the peak")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child)
        return
    from matmul_peak import machine

    print(json.dumps({"machine": machine(options.device)}), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        faces = max(options.faces, options.rival_batch, 8)
        if not options.skip_check and options.llm != "7b":
            honest(folder, options)
        for questions in options.questions:
            parts = make_parts(
                folder, options.image_tokens, questions, faces, options.llm, options.device
            )
            if options.rivals:
                compare(parts, questions, options)
            if not options.skip_llm:
                given = {"parts": parts.__dict__, "questions": questions, "steps": options.steps}
                share = child({**given, "side": "llm", "batch": 1})
                print(json.dumps({"llm_step": share, "questions": questions}), flush=True)


def honest(folder: Path, options: argparse.Namespace) -> None:
    """Refuse to compare sides that do not compute the same."""
    parts = make_parts(
        folder, options.image_tokens, CHECKED_QUESTIONS, CHECKED_FACES, options.llm, "cpu"
    )
    exact = {**parts.__dict__, "dtype": "float32"}
    found = child({"side": "check", "parts": exact, "questions": CHECKED_QUESTIONS})
    print(json.dumps({"check": found}), flush=True)
    if max(found["loss_difference"], found["gradient_difference"]) > LIMIT:
        raise SystemExit("the sides do not compute the same: no comparison")


if __name__ == "__main__":
    main()
