"""Late fusion for an artifact: score the val split with MLLM and expert, fit, keep what was fitted.

``face-mllm fuse`` does it for a finished artifact, a stage with ``expert.fusion: true`` after its
training.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers.integrations import is_deepspeed_zero3_enabled

from data_pipeline.records import read_manifest, whole_folder
from eval.predict import predict_likelihood
from eval.table import Faces
from face_mllm import distributed
from face_mllm.artifact import STAGE_FILE, read_artifact
from face_mllm.config import StageConfig
from face_mllm.errors import UserError
from face_mllm.experts.joined.expert import FOLDER, JoinedExpert
from face_mllm.experts.joined.fusion import (
    Array,
    Fusion,
    Group,
    fit,
    spread,
    write_fusion,
)
from face_mllm.experts.joined.leaks import check_val_unseen
from face_mllm.experts.joined.settings import ExpertBase
from face_mllm.experts.joined.val import val_questions
from face_mllm.experts.loading import kind_of, known_classes
from face_mllm.model.processing import FaceProcessor
from face_mllm.model_card import model_card
from face_mllm.outputs import check_out
from face_mllm.progress import Progress
from face_mllm.scoring import LikelihoodScorer
from face_mllm.train import manifest_fingerprint, say

BATCH = 32


def fuse(
    model: Path,
    data: Path,
    out: Path,
    expert: Path | None = None,
    faces: int = 2000,
    progress: Progress | None = None,
    classes: int = 7,
) -> Path:
    """Write a copy of an artifact with late fusion in it.

    Args:
        model: artifact, with or without an expert.
        data: built dataset; only its val split is read.
        out: folder to write.
        expert: folder of the expert to fuse with; None takes the artifact's own.
        faces: at most so many val faces, drawn by hash of id.
        progress: told of faces done.
        classes: expressions that an Exp-CLIP given as ``expert`` tells apart: 7, 8 or 11.

    Raises:
        UserError: no expert, two of them, one that was trained on val faces, no val split or no
            expression in it, ``out`` in use.
    """
    check_out(out)
    artifact = read_artifact(model)
    base, source = _fused_base(model, artifact.expert, expert, classes)
    val_questions(data, known_classes(source, base.classes), faces)
    check_val_unseen(base, source, data)
    given = None if expert is None else JoinedExpert(source, base)
    scorer = LikelihoodScorer.from_artifact(model)
    scorer.processor.expert = joined = given or scorer.processor.expert
    found = fit_on_val(scorer, data, faces, progress)
    base = dataclasses.replace(base, fusion=True)
    with whole_folder(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        info = json.loads((folder / STAGE_FILE).read_text()) | {"expert": base.to_json()}
        (folder / STAGE_FILE).write_text(json.dumps(info, indent=1, default=str) + "\n")
        card = model_card(artifact.bases, artifact.chain, artifact.adapters, base)
        (folder / "README.md").write_text(card)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        joined.save(folder)
        write_fusion(folder, found)
    return out


def _fused_base(
    model: Path, own: ExpertBase | None, expert: Path | None, classes: int
) -> tuple[ExpertBase, Path]:
    """Which expert is fused with and the folder it lies in."""
    if expert is None:
        if own is None:
            raise UserError(f"{model}: no expert inside", "give one with --expert FOLDER")
        return own, model / FOLDER
    if own is not None and (own.token or own.text):
        raise UserError(
            f"{model}: has an expert of its own", "leave out --expert to fuse with that one"
        )
    folder = expert.expanduser().resolve()
    return ExpertBase(kind_of(folder), str(folder), classes=classes), folder


def fuse_stage(
    config: StageConfig,
    trainer: Any,
    processor: FaceProcessor,
    autocast: bool,
    progress: Progress | None = None,
) -> None:
    """Add late fusion to the artifact a stage has just written; collective.

    The artifact is whole without it: what goes wrong here is said and costs no training.
    """
    remedy = f"face-mllm fuse --model {config.out} --data {config.data} --out NEW"
    if is_deepspeed_zero3_enabled() or trainer.is_fsdp_enabled:
        say(f"[yellow]late fusion needs whole weights in one process:[/] {remedy}")
        return
    faces = config.expert.fusion_faces if config.expert else 2000
    scorer = LikelihoodScorer(trainer.accelerator.unwrap_model(trainer.model), processor, autocast)
    try:
        found = fit_on_val(scorer, config.data, faces, progress)
    except UserError as error:
        say(f"[yellow]no late fusion:[/] {error}")
    else:
        distributed.on_main(lambda: write_fusion(config.out, found))


def fit_on_val(
    scorer: LikelihoodScorer, data: Path, faces: int = 2000, progress: Progress | None = None
) -> Fusion:
    """Fit late fusion of a model and its expert on the val split of a dataset.

    Args:
        scorer: the model; its processor holds the expert.
        data: built dataset.
        faces: at most so many, drawn by hash of id.
        progress: told of faces done.

    Raises:
        UserError: no val split, or no face whose expression both can name.
    """
    expert: JoinedExpert = scorer.processor.expert
    chosen, table = val_questions(data, expert.classes, faces)
    told = progress or (lambda _done, _total, _text: None)
    scored = predict_likelihood(scorer, chosen, table, told)
    logs = expert_logs(expert, chosen, scored, told)
    found = fit(groups_of(scored, logs), manifest_fingerprint(read_manifest(data)))
    say(f"[dim]{words(found)}")
    return found


def groups_of(scored: pd.DataFrame, logs: list[Array]) -> list[Group]:
    """Scored rows and the expert's answers to them, by choices."""
    groups = []
    scored = scored.reset_index(drop=True)
    for choices, rows in scored.groupby("choices", sort=True):
        places = list(rows.index)
        groups.append(
            Group(
                tuple(choices),
                np.stack([scored["log_likelihoods"].iat[at] for at in places]),
                np.stack([logs[at] for at in places]),
                rows["truth"].to_numpy().astype(np.int64),
            )
        )
    return groups


def expert_logs(
    expert: JoinedExpert, faces: Faces, rows: pd.DataFrame, progress: Progress
) -> list[Array]:
    """The expert's log-probabilities over the choices of each row.

    Args:
        expert: who answers.
        faces: where the pictures come from.
        rows: questions about expressions, of :func:`eval.table.question_table`.
        progress: told of faces done.
    """
    wanted = set(rows["id"])
    known: dict[str, Array] = {}
    waiting: list[tuple[str, Image.Image]] = []

    def answer() -> None:
        images = [image for _, image in waiting]
        logs: torch.Tensor = expert.log_probabilities(images)
        known.update(zip((name for name, _ in waiting), logs.double().numpy(), strict=True))
        waiting.clear()

    for record in faces.pick(wanted):
        waiting.append((record.id, record.open_image()))
        if len(waiting) == BATCH:
            answer()
            progress(len(known), len(wanted), "expert")
    if waiting:
        answer()
    pairs = zip(rows["id"], rows["choices"], strict=True)
    return [spread(known[name], expert.classes, choices) for name, choices in pairs]


def words(fusion: Fusion) -> str:
    """What was fitted, in a line."""
    val = fusion.val
    figures = ", ".join(
        f"{name} UAR {val[name]['uar']:.3f}" for name in ("mllm", "expert", "fused")
    )
    before, after = val["uncalibrated"]["mllm"]["ece"], val["fused"]["ece"]
    line = (
        f"late fusion on {val['faces']} val faces: weight {fusion.weight:.2f}; {figures}; "
        f"calibration error {before:.3f} (mllm alone) -> {after:.3f}"
    )
    if fusion.unsettled:
        line += "; too few or too easy faces: its probabilities are not calibrated"
    return line
