"""The verbs of ``face-mllm exp-clip`` and ``face-mllm mask-fer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from face_mllm.progress import quiet_libraries, terminal_progress

exp_clip_app = typer.Typer(help="Exp-CLIP: a linear head that carries CLIP into an LLM's space.")
mask_fer_app = typer.Typer(help="mask-FER: a learned mask on frozen CLIP, for expressions.")

Config = Annotated[str, typer.Argument(help="YAML, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
]
Data = Annotated[list[Path], typer.Option("--data", help="Built dataset; give several.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for results.json.")]
Split = Annotated[str, typer.Option("--split", help="train, val or test.")]
Limit = Annotated[int, typer.Option("--limit", min=0, help="At most so many faces; 0 for all.")]
Seed = Annotated[int, typer.Option("--seed", help="Of draws and bootstrap.")]


@exp_clip_app.command(name="train")
def train_exp_clip(config: Config, overrides: Overrides = None) -> None:
    """Train the head on unlabelled faces; features are computed once and kept."""
    _train(config, overrides, "exp_clip")


@mask_fer_app.command(name="train")
def train_mask_fer(config: Config, overrides: Overrides = None) -> None:
    """Train on one dataset; the same command again goes on after an interruption."""
    _train(config, overrides, "mask_fer")


def _train(config: str, overrides: list[str] | None, kind: str) -> None:
    from face_mllm.configio import find_config
    from face_mllm.errors import UserError

    find_config(config)  # a misspelt path is said at once, before the heavy imports
    quiet_libraries()
    from face_mllm.train import config_kind, main

    verb = kind.replace("_", "-")
    if config_kind(config) != kind:
        raise UserError(f"{config} is no {verb} config", f"its first key is `kind: {kind}`")
    with terminal_progress(verb) as progress:
        typer.echo(main(config, overrides or [], progress))


@exp_clip_app.command(name="eval")
def evaluate_exp_clip(
    model: Annotated[Path, typer.Option("--model", help="Expert folder or released checkpoint.")],
    data: Data,
    out: Out,
    clip: Annotated[
        str | None, typer.Option("--clip", help="CLIP of a released checkpoint.")
    ] = None,
    split: Split = "test",
    prompt_types: Annotated[
        str, typer.Option("--prompt-types", help="Of 1,2,3,4,5.")
    ] = "1,2,3,4,5",
    mean_of: Annotated[
        str, typer.Option("--mean-of", help="Ensembles: mean of logits or of embeddings.")
    ] = "logits",
    classes: Annotated[int, typer.Option("--classes", help="7, 8 or 11; 0 looks at the data.")] = 0,
    clips: Annotated[
        bool, typer.Option("--clips", help="A subject's faces are frames of one clip.")
    ] = False,
    short_clips: Annotated[
        str, typer.Option("--short-clips", help="Of at most 16 frames: all, or first as released.")
    ] = "all",
    paper_preprocess: Annotated[
        bool | None,
        typer.Option("--paper-preprocess/--clip-preprocess", help="Else as the head was trained."),
    ] = None,
    limit: Limit = 0,
    seed: Seed = 0,
) -> None:
    """Zero-shot expressions under five prompt types, beside plain and up-sampled CLIP."""
    from face_mllm.errors import UserError

    kinds = [word.strip() for word in prompt_types.split(",")]
    if not set(kinds) <= set("12345"):
        raise UserError(f"--prompt-types {prompt_types}", "give some of 1,2,3,4,5")
    if mean_of not in ("logits", "embeddings"):
        raise UserError(f"--mean-of {mean_of}", "choose logits or embeddings")
    if classes not in (0, 7, 8, 11):
        raise UserError(f"--classes {classes}", "choose 7, 8 or 11, or 0 to look at the data")
    if short_clips not in ("all", "first"):
        raise UserError(f"--short-clips {short_clips}", "choose all or first")
    quiet_libraries()
    from face_mllm.experts.exp_clip.evaluate import Asked, evaluate
    from face_mllm.experts.exp_clip.table import show

    chosen: Any = mean_of
    short: Any = short_clips
    types = tuple(sorted({int(kind) for kind in kinds}))
    asked = Asked(split, classes, types, chosen, clips, short, limit, seed)
    with terminal_progress("exp-clip") as progress:
        found = evaluate(
            model,
            data,
            out,
            asked,
            clip=clip,
            paper_preprocess=paper_preprocess,
            progress=progress,
        )
    show(found)
    typer.echo(out / "table.md")


@exp_clip_app.command(name="adopt")
def adopt_released(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint with mlp.weight.")],
    clip: Annotated[str, typer.Option("--clip", help="CLIP it was trained on.")],
    out: Annotated[Path, typer.Option("--out", help="Expert folder to write.")],
    paper_preprocess: Annotated[
        bool, typer.Option("--paper-preprocess/--clip-preprocess", help="As the head was trained.")
    ] = True,
) -> None:
    """Make an expert folder of a released checkpoint: expert.model of a stage, --expert of fuse."""
    quiet_libraries()
    from face_mllm.experts.exp_clip.released import adopt

    typer.echo(adopt(model, clip, out, paper_preprocess))


@mask_fer_app.command(name="eval")
def evaluate_mask_fer(
    model: Annotated[Path, typer.Option("--model", help="Folder that `mask-fer train` wrote.")],
    data: Data,
    out: Out,
    split: Split = "test",
    logits_from: Annotated[
        str, typer.Option("--logits-from", help="fc, separated or mean; the artifact's if empty.")
    ] = "",
    remap: Annotated[
        list[str] | None, typer.Option("--remap", help="contempt=disgust: class to class, by name.")
    ] = None,
    limit: Limit = 0,
    seed: Seed = 0,
) -> None:
    """Measure on one or more datasets; means with and without the one it was trained on."""
    quiet_libraries()
    from rich.console import Console

    from face_mllm.experts.mask_fer import evaluate as room

    with terminal_progress("mask-fer") as progress:
        found = room.evaluate(
            model,
            data,
            out,
            split=split,
            logits_from=room.logits_source(logits_from),
            remap=room.class_map(remap) if remap else None,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    Console(stderr=True).print(room.table(found))
    typer.echo(out / "results.json")


@mask_fer_app.command(name="verdicts")
def write_out_of_fold(
    model: Annotated[Path, typer.Option("--model", help="Folder that `mask-fer train` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Built dataset of the MLLM's stage.")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    folds: Annotated[int, typer.Option("--folds", min=2, help="Experts trained anew.")] = 5,
) -> None:
    """Verdicts on training faces, each by an expert that was trained without the subject."""
    quiet_libraries()
    from face_mllm.experts.joined.out_of_fold import out_of_fold

    with terminal_progress("verdicts") as progress:
        typer.echo(out_of_fold(model, data, out, folds, progress))


def fuse(
    model: Annotated[Path, typer.Option("--model", help="Artifact folder that `train` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Built dataset; its val split is read.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    expert: Annotated[
        Path | None, typer.Option("--expert", help="Expert folder; the artifact's own if empty.")
    ] = None,
    faces: Annotated[int, typer.Option("--faces", min=1, help="Val faces at most.")] = 2000,
    classes: Annotated[
        int, typer.Option("--classes", help="7, 8 or 11: what an Exp-CLIP tells apart.")
    ] = 7,
) -> None:
    """Fit late fusion with an expert, and calibration, on the val split; nothing is trained."""
    from face_mllm.errors import UserError

    if classes not in (7, 8, 11):
        raise UserError(f"--classes {classes}", "choose 7, 8 or 11")
    quiet_libraries()
    from face_mllm.experts.joined.fuse import fuse as room

    with terminal_progress("fusing") as progress:
        typer.echo(room(model, data, out, expert, faces, progress, classes))
