"""The verbs of ``face-mllm data``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from face_mllm.errors import UserError
from face_mllm.progress import terminal_progress

data_app = typer.Typer(help="Faces to questions: make, build, check and look at datasets.")

Folder = Annotated[Path, typer.Argument(help="Built dataset folder.")]


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, help="Faces; pairs with --counterfactual.")
    ],
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
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; the CPUs if not given.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray for a cluster (extra `ray`).")
    ] = "local",
) -> None:
    """Turn labelled sources into a dataset of face records with questions and answers.

    After a kill the same command goes on where it stopped.
    """
    from data_pipeline.build import build as run
    from data_pipeline.manifest import summary

    with terminal_progress("building") as progress:
        manifest = run(
            recipe, out, overrides or [], progress=progress, workers=workers, engine=engine
        )
    typer.echo(summary(manifest))
    typer.echo(out)


@data_app.command()
def check(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Datasets used together, or one.")
    ],
) -> None:
    """Look for leaks, duplicates, broken images and imbalance; exit 1 if something is wrong.

    Several datasets, such as a train and a test set, are checked against each other too.
    """
    from data_pipeline.check import check as run

    with terminal_progress() as progress:
        report = run(*folders, progress=progress)
    typer.echo(report.text)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command()
def show(
    folder: Folder,
    html: Annotated[Path | None, typer.Option("--html", help="Write a contact sheet.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of faces.")] = 12,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Model whose tokens the sheet shows; embedded if cached."),
    ] = None,
) -> None:
    """Print faces with their questions and answers, or write them as a contact sheet."""
    from data_pipeline.show import show as run

    with terminal_progress("drawing") as progress:
        made = run(folder, html=html, count=count, tokenizer=tokenizer, progress=progress)
    typer.echo(made)


@data_app.command()
def sources() -> None:
    """List what `data build` can read."""
    from data_pipeline.sources import describe_sources

    typer.echo(describe_sources())


@data_app.command()
def inspect(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[SOURCE] ROOT [key=value]",
            help="The folder or file as downloaded; options of the source.",
        ),
    ],
    source: Annotated[
        str | None, typer.Option("--source", help="Reader; recognised if not given.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="Read by this one; the default if not given.")
    ] = None,
    protocols: Annotated[
        bool, typer.Option("--protocols", help="Read by every protocol of the source.")
    ] = False,
) -> None:
    """Name the dataset in a folder and compare it with the published counts; exit 1 if it differs.

    Counts faces per split, labels and unknowns, rows left out, and pictures that are missing.
    """
    from data_pipeline.inspect import inspect as run

    root, name, overrides = _inspected(words, source)
    with terminal_progress("inspecting") as progress:
        found = run(
            root,
            name,
            protocol=protocol,
            every_protocol=protocols,
            overrides=overrides,
            progress=progress,
        )
    typer.echo(found.text)
    if not found.ok:
        raise typer.Exit(1)


@data_app.command()
def annotate(
    data: Annotated[
        str, typer.Argument(help="Built dataset, folder of pictures, recipe YAML or its name.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    annotator: Annotated[
        list[str],
        typer.Option(
            "--annotator",
            metavar="KIND:MODEL[,key=value...]",
            help="openai, hf or artifact; twice for consensus. See docs/annotate.md.",
        ),
    ],
    attributes: Annotated[
        str, typer.Option("--attributes", help="Comma-separated; what pictures show if empty.")
    ] = "",
    caption: Annotated[
        bool, typer.Option("--caption/--no-caption", help="Ask for a description in words.")
    ] = True,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="US dollars never exceeded.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first so many faces.")
    ] = None,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels", help="Labels of the input stay, and win.")
    ] = False,
    skip_unanswered: Annotated[
        bool, typer.Option("--skip-unanswered", help="Finish without faces that got no answer.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Captions and attribute labels for faces from vision models; the same command goes on.

    Prints an estimate and asks before pictures leave this machine.
    """
    from data_pipeline import annotate as room

    specs = room.parse_annotators(annotator)
    asked = room.asked_attributes(attributes.split(",")) or room.DEFAULT_ATTRIBUTES
    options = room.Options(max_cost, limit, keep_labels, skip_unanswered)
    questions = room.Questions(asked, caption)
    with terminal_progress() as progress:
        manifest = room.annotate(
            data, out, specs, questions, partial(_agreed, yes=yes), options, progress
        )
    if manifest is None:
        raise typer.Exit(1)
    typer.echo(room.summary(manifest))
    typer.echo(out)


def _agreed(estimate: str, remote: bool, yes: bool) -> bool:
    """Print what annotating takes and ask where pictures would leave this machine."""
    typer.echo(estimate)
    if yes or not remote:
        return True
    if not sys.stdin.isatty():
        raise UserError("nobody is there to confirm", "add --yes")
    return typer.confirm("Send the pictures?")


def _inspected(words: list[str], source: str | None) -> tuple[str, str | None, list[str]]:
    """Split the arguments into root, source and options; a root may hold a ``=`` itself."""
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    places = [word for word in words if word not in overrides]
    if len(places) == 1:
        return places[0], source, overrides
    if len(places) == 2 and source in (None, places[0]):
        return places[1], places[0], overrides
    raise typer.BadParameter("give one ROOT, or SOURCE and ROOT")
