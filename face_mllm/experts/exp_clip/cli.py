"""The verbs of ``face-mllm exp-clip``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from face_mllm.progress import quiet_libraries, terminal_progress

exp_clip_app = typer.Typer(help="Exp-CLIP: a linear head that carries CLIP into an LLM's space.")


@exp_clip_app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML, or the name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
    ] = None,
) -> None:
    """Train the head on unlabelled faces; features are computed once and kept."""
    from face_mllm.configio import find_config

    find_config(config)
    quiet_libraries()
    from face_mllm.experts.exp_clip.train import main as run

    with terminal_progress("exp-clip") as progress:
        folder = run(config, overrides or [], progress)
    typer.echo(folder)


@exp_clip_app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Expert folder or released checkpoint.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Built dataset; give it again for each fold.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json, table.md.")],
    clip: Annotated[
        str | None, typer.Option("--clip", help="CLIP of a released checkpoint.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    prompt_types: Annotated[
        str, typer.Option("--prompt-types", help="Of 1,2,3,4,5.")
    ] = "1,2,3,4,5",
    mean_of: Annotated[
        str, typer.Option("--mean-of", help="Ensembles: mean of logits or of embeddings.")
    ] = "logits",
    classes: Annotated[
        int, typer.Option("--classes", min=0, max=11, help="7, 8 or 11; 0 looks at the data.")
    ] = 0,
    clips: Annotated[
        bool, typer.Option("--clips", help="A subject's faces are frames of one clip.")
    ] = False,
    paper_preprocess: Annotated[
        bool | None,
        typer.Option("--paper-preprocess/--clip-preprocess", help="Else as the head was trained."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many faces.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of draw and bootstrap.")] = 0,
) -> None:
    """Zero-shot expressions under five prompt types, beside plain and up-sampled CLIP."""
    from face_mllm.errors import UserError

    kinds = [word.strip() for word in prompt_types.split(",")]
    if not set(kinds) <= set("12345"):
        raise UserError(f"--prompt-types {prompt_types}", "give some of 1,2,3,4,5")
    if mean_of not in ("logits", "embeddings"):
        raise UserError(f"--mean-of {mean_of}", "choose logits or embeddings")
    quiet_libraries()
    from face_mllm.experts.exp_clip.evaluate import Asked, evaluate
    from face_mllm.experts.exp_clip.table import show

    chosen: Any = mean_of
    types = tuple(int(kind) for kind in kinds)
    asked = Asked(split, classes, types, chosen, clips, limit, seed)
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
