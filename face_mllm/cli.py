"""The command ``face-mllm``: thin verbs over the packages, errors a user can mend in one line.

Nothing heavy is imported before a verb runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from face_mllm.cli_data import data_app
from face_mllm.errors import UserError
from face_mllm.experts.cli import exp_clip_app, fuse, mask_fer_app
from face_mllm.progress import quiet_libraries, terminal_progress

HELP = "Teach a multimodal LLM to see faces: data, three LoRA stages, measured answers."
INTERRUPTED = 130
# modules that come with an extra of the package
EXTRAS = {"anny": "synth", "warp": "synth", "httpx2": "annotate", "bitsandbytes": "quant"}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")
app.add_typer(mask_fer_app, name="mask-fer")
app.add_typer(exp_clip_app, name="exp-clip")
app.command()(fuse)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Override settings.")
]
FaceChoice = Annotated[
    str,
    typer.Option(
        "--faces", help="none: the picture is a face; detect: find faces; auto: as in training."
    ),
]
Model = Annotated[Path, typer.Option("--model", help="Artifact folder that `train` wrote.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"face-mllm {version('face-mllm')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loading forks
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # ours are shown


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; rerun to go on.")] = Path(
        "runs/demo"
    ),
    full: Annotated[bool, typer.Option("--full", help="The complete recipe, longer.")] = False,
) -> None:
    """The whole job on the embedded models: faces, questions, three stages, evaluation, report."""
    quiet_libraries()
    from face_mllm.demo import run_demo

    run_demo(out, full=full)


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Versions, devices, memory, caches; what is missing and the command that mends it."""
    from face_mllm.doctor import run_doctor

    if not run_doctor(as_json=json_):
        raise typer.Exit(1)


@app.command()
def validate(
    config: Annotated[str, typer.Argument(help="Stage YAML, or the name of a shipped one.")],
    overrides: Overrides = None,
    launch: Annotated[
        Path | None, typer.Option("--launch", help="accelerate YAML it is to be launched with.")
    ] = None,
    gpus: Annotated[
        str, typer.Option("--gpus", help="Numbers of GPUs to estimate for.")
    ] = "1,8,64",
    meta: Annotated[
        bool, typer.Option("--meta", help="The config alone: no data, no weights needed.")
    ] = False,
) -> None:
    """Check a config without training: keys, paths, tokenizer, one batch, memory and time."""
    from face_mllm.configio import find_config

    find_config(config)  # a misspelt path is said at once, before the heavy imports
    counts = [int(word) for word in gpus.split(",") if word.strip().isdigit() and int(word)]
    if not counts:
        raise UserError(f"--gpus {gpus!r}", "give numbers, e.g. --gpus 1,8")
    quiet_libraries()
    from face_mllm.validate import validate as run

    run(config, overrides or [], launch=launch, gpus=counts, meta=meta)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="Stage YAML, or the name of a shipped one.")],
    overrides: Overrides = None,
) -> None:
    """Train one stage; the same command again goes on after an interruption."""
    from face_mllm.configio import find_config

    find_config(config)
    quiet_libraries()
    from face_mllm.distributed import is_main
    from face_mllm.train import main as run

    with terminal_progress("training") as progress:
        folder = run(config, overrides or [], progress)
    if is_main():
        typer.echo(folder)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold the adapters into weights.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="llava: merged, for stock transformers.")
    ] = "",
    dtype: Annotated[str, typer.Option("--dtype", help="fp32 or bf16, of the LLM.")] = "fp32",
) -> None:
    """Write an artifact without adapters that answers as the one given; proven on a probe."""
    if format_ not in ("", "llava"):
        raise UserError(f"--format {format_!r}", "choose llava")
    if not merge and not format_:
        raise UserError("export to which form?", "add --merge or --format llava")
    quiet_libraries()
    if format_:
        from face_mllm.llava import export_llava

        typer.echo(export_llava(model, out, dtype))
        return
    from face_mllm.export import export_merged

    typer.echo(export_merged(model, out, dtype))


@app.command(name="eval")
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option("--data", help="Built dataset folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json, report.html.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Comma-separated; all if empty.")] = "",
    scorer: Annotated[
        str, typer.Option("--scorer", help="likelihood, generate or both.")
    ] = "likelihood",
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many faces.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw and the bootstrap.")] = 0,
) -> None:
    """Score a model on held-out faces next to majority and linear-probe baselines."""
    quiet_libraries()
    from eval.run import evaluate as run
    from face_mllm.distributed import is_main

    wanted = [task.strip() for task in tasks.split(",") if task.strip()] or None
    with terminal_progress("evaluating") as progress:
        run(
            model,
            data,
            out,
            tasks=wanted,
            split=split,
            scorer=scorer,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    if is_main():
        typer.echo(out / "report.html")


@app.command()
def describe(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    format_: Annotated[str, typer.Option("--format", help="json or csv.")] = "json",
    faces: FaceChoice = "auto",
) -> None:
    """One row per face: expression probabilities, action units, attributes, age, head pose."""
    from face_mllm.describe import describe_images

    with terminal_progress("describing") as progress:
        rows = describe_images(model, images, format_, progress, faces)
    typer.echo(rows, nl=False)


@app.command()
def chat(
    model: Model,
    question: Annotated[str | None, typer.Argument(help="One question; none to converse.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Photograph of a face.")] = None,
    faces: FaceChoice = "auto",
) -> None:
    """Ask about a face: one question, or a conversation in the terminal."""
    from face_mllm.terminal_chat import converse

    converse(model, image, question, faces)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 bad input, 1 not done."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = int(app(arguments, prog_name="face-mllm", standalone_mode=False) or 0)
        if code == INTERRUPTED:  # some typer versions turn the signal into an exit code
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted -> the same command goes on where it can", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe left; nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = explain(error)
        if line is None:  # a bug of ours: its traceback is worth more than a sentence
            raise
        return _fail(line, 2)


def _fail(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return code


def explain(error: BaseException) -> str | None:
    """One line with the remedy for an error the user can mend; None for a bug."""
    if isinstance(error, UserError):
        return _one_line(str(error))
    usage: Any = typer.BadParameter.__mro__[2]  # click's base error, wherever typer keeps click
    if isinstance(error, usage):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "face-mllm"
        return f"{_one_line(error.format_message())} -> see `{command} --help`"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        extra = EXTRAS[error.name]
        return f"{error.name} is not installed -> run `pip install 'face-mllm[{extra}]'`"
    return _explain_machine(error)


def _explain_machine(error: BaseException) -> str | None:
    """What the machine ran out of or forbids; libraries hide it behind errors of their own."""
    found = _explain_one(error)
    cause = error.__cause__ or error.__context__
    return found or (_explain_machine(cause) if cause is not None else None)


def _explain_one(error: BaseException) -> str | None:
    text = str(error)
    if getattr(error, "errno", None) in NO_SPACE or "No space left on device" in text:
        place = getattr(error, "filename", None)
        where = f" writing {place}" if place else ""
        return f"no disk space left{where} -> free some or write elsewhere, then run it again"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: permission denied -> choose a folder you may read and write"
    if isinstance(error, NotADirectoryError) and error.filename:
        return f"{error.filename}: a file where a folder belongs -> unpack it or give the folder"
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename}: a file where a folder belongs -> choose another place"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename}: a folder where a file belongs -> choose another name"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename}: read-only file system -> write elsewhere"
    if isinstance(error, MemoryError) or any(mark in text for mark in _OUT_OF_MEMORY):
        return (
            "out of memory -> lower faces_per_device, max_tokens or the image count, "
            "or take a smaller model; `face-mllm doctor` shows what is free"
        )
    return None


_OUT_OF_MEMORY = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
