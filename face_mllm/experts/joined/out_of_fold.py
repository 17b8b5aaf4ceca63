"""Out-of-fold verdicts: what mask-FER says of training faces it has not been trained on.

The subjects are dealt to folds by hash. For each fold the expert is trained anew, with the settings
of the expert it stands in for, on the others' labelled faces, and speaks of the fold's. So an LLM
that reads the verdicts in training meets the expert as it will meet it on new faces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from data_pipeline.records import FaceRecord, load_split
from eval.tasks import rank
from face_mllm.errors import UserError
from face_mllm.experts.joined.verdict import write_verdicts
from face_mllm.experts.loading import kind_of
from face_mllm.experts.mask_fer.config import MaskFerConfig
from face_mllm.experts.mask_fer.expert import MaskFerExpert, read_info
from face_mllm.experts.mask_fer.faces import ExpressionFaces, load_training
from face_mllm.experts.mask_fer.train import Run
from face_mllm.hardware import for_precision
from face_mllm.outputs import check_file
from face_mllm.progress import Progress

BATCH = 64
Item = TypeVar("Item")


def out_of_fold(
    model: Path,
    data: Path,
    out: Path,
    folds: int = 5,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Path:
    """Write the verdicts on every training face of a dataset.

    Args:
        model: the mask-FER whose settings and classes are taken.
        data: built dataset of the stage that will read the verdicts.
        out: parquet file to write.
        folds: how many experts are trained.
        progress: told of faces spoken of.
        cache: folder of the feature cache; the user's if not given.

    Raises:
        UserError: no such expert, too few faces for the folds.
    """
    check_file(out)
    if kind_of(model) == "exp_clip":
        raise UserError(
            f"{model}: an Exp-CLIP reads no label, so it needs no folds",
            "leave expert.verdicts out: the stage asks the expert itself",
        )
    _, training = read_info(model)
    told = progress or (lambda _done, _total, _text: None)
    logs: dict[str, torch.Tensor] = {}
    with TemporaryDirectory() as folder:
        given = {**training["config"], "data": data, "out": Path(folder) / "fold", "save_steps": 0}
        config = MaskFerConfig.model_validate({**given, "resume": "never"})
        train, val = load_training(data, config.classes, config.remap, config.val_share)
        rows = load_split(data, "train").remove_columns(["qa"])
        fold_of = {
            name: fold(subject or name, folds, config.seed)
            for name, subject in zip(rows["id"][:], rows["subject"][:], strict=True)
        }
        taught = [_others(data, train, fold_of, number) for number in range(folds)]
        for number, others in enumerate(taught):
            expert = _trained(config, others, val, cache)
            chosen = [k for k, name in enumerate(rows["id"][:]) if fold_of[name] == number]
            records = (FaceRecord.from_row({**rows[k], "qa": ()}) for k in chosen)
            for batch in batches(records, BATCH):
                found = expert.log_probabilities([record.open_image() for record in batch])
                logs |= {r.id: row for r, row in zip(batch, found, strict=True)}
                told(len(logs), len(rows), f"fold {number + 1} of {folds}")
    about = {"folds": folds, "expert": str(model), "data": str(data), "seed": config.seed}
    write_verdicts(out, config.classes, logs, about)
    return out


def _others(
    data: Path, train: ExpressionFaces, fold_of: dict[str, int], number: int
) -> ExpressionFaces:
    """Labelled faces of all subjects but those of one fold."""
    kept = [k for k, name in enumerate(train.column("id")) if fold_of.get(name, -1) != number]
    if len(kept) in (0, len(train)):
        which = "no" if kept else "every"
        raise UserError(
            f"{data}: fold {number + 1} has {which} labelled face", "choose fewer or more --folds"
        )
    return train.take(kept)


def _trained(
    config: MaskFerConfig, train: ExpressionFaces, val: ExpressionFaces, cache: Path | None
) -> MaskFerExpert:
    """An expert trained on some of the subjects."""
    run = Run(config, for_precision(config.precision), train, val, cache)
    run.prepare()
    while run.step < run.steps:
        run.advance()
    run.model.load_state_dict(run.best[1])
    run.model.eval()
    return run.expert


def fold(subject: str, folds: int, seed: int) -> int:
    """The fold of a subject, by hash."""
    return int(rank(subject, seed)[:8], 16) % folds


def batches(items: Iterator[Item], size: int) -> Iterator[Sequence[Item]]:
    """Items in lists of at most ``size``."""
    while chunk := list(islice(items, size)):
        yield chunk
