"""The verbs of ``face-mllm mask-fer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from face_mllm.progress import quiet_libraries, terminal_progress

mask_fer_app = typer.Typer(help="mask-FER: a learned mask on frozen CLIP, for expressions.")


@mask_fer_app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
    ] = None,
) -> None:
    """Train on one dataset; the same command again goes on after an interruption."""
    from face_mllm.configio import find_config, load_yaml_model

    find_config(config)  # a misspelt path is said at once, before the heavy imports
    quiet_libraries()
    from face_mllm.experts.mask_fer.config import MaskFerConfig
    from face_mllm.experts.mask_fer.train import train_mask_fer

    typer.echo(train_mask_fer(load_yaml_model(config, MaskFerConfig, overrides or [])))


@mask_fer_app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Folder that `mask-fer train` wrote.")],
    data: Annotated[list[Path], typer.Option("--data", help="Built dataset; give several.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json.")],
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    logits_from: Annotated[
        str, typer.Option("--logits-from", help="fc, separated or mean; the artifact's if empty.")
    ] = "",
    remap: Annotated[
        list[str] | None, typer.Option("--remap", help="contempt=disgust: class to class, by name.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
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
            seed=seed,
            progress=progress,
        )
    Console(stderr=True).print(room.table(found))
    typer.echo(out / "results.json")
