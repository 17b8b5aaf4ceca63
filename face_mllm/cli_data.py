"""The verbs of ``face-mllm data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from face_mllm.progress import terminal_progress

data_app = typer.Typer(help="Faces to questions: make, build, check and look at datasets.")

Folder = Annotated[Path, typer.Argument(help="Built dataset folder.")]


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of faces.")],
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same faces.")] = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; the CPUs if not given.")
    ] = None,
    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="Pairs that differ in one factor.")
    ] = False,
) -> None:
    """Render faces with exact labels from the parametric model."""
    from data_pipeline.synth.synthesise import synthesise

    with terminal_progress("rendering") as progress:
        synthesise(
            out, count, seed, workers=workers, counterfactual=counterfactual, progress=progress
        )
    typer.echo(out)


@data_app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="Recipe YAML, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
    ] = None,
) -> None:
    """Turn labelled sources into a dataset of face records with questions and answers."""
    from data_pipeline.build import build as run
    from data_pipeline.manifest import summary

    with terminal_progress("building") as progress:
        manifest = run(recipe, out, overrides or [], progress=progress)
    typer.echo(summary(manifest))
    typer.echo(out)


@data_app.command()
def check(folder: Folder) -> None:
    """Look for leaks, duplicates, broken images and imbalance; exit 1 if something is wrong."""
    from data_pipeline.check import check as run

    with terminal_progress() as progress:
        report = run(folder, progress=progress)
    typer.echo(report.text)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command()
def show(
    folder: Folder,
    html: Annotated[Path | None, typer.Option("--html", help="Write a contact sheet.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of faces.")] = 12,
) -> None:
    """Print faces with their questions and answers, or write them as a contact sheet."""
    from data_pipeline.show import show as run

    typer.echo(run(folder, html=html, count=count))


@data_app.command()
def sources() -> None:
    """List what `data build` can read."""
    from data_pipeline.sources import describe_sources

    typer.echo(describe_sources())
