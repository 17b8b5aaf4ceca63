"""Rows of an expert alone and of its late fusion with the model, beside the model's own."""

from __future__ import annotations

from typing import Any

import pandas as pd

from eval.table import Faces, score_rows
from face_mllm.progress import Progress

EXPERT, FUSED = "expert", "late_fusion"


def fusion_rows(
    scorer: Any, faces: Faces, scored: pd.DataFrame, progress: Progress
) -> dict[str, pd.DataFrame]:
    """Score the expressions by expert and fusion, where the model carries them.

    Args:
        scorer: with ``fusion`` (see :mod:`face_mllm.experts.joined.fusion`) and, on its processor,
            the expert; anything else gives no rows.
        faces: the measured faces.
        scored: the model's rows by likelihood.

    Returns:
        ``expert`` and ``late_fusion``, on the same rows as the model's.
    """
    fusion = getattr(scorer, "fusion", None)
    rows = scored[scored["task"] == "expression"].reset_index(drop=True)
    if fusion is None or not len(rows):
        return {}
    from face_mllm.experts.joined.fuse import expert_logs

    logs = expert_logs(scorer.processor.expert, faces, rows, progress)
    knows = [bool((each > -float("inf")).any()) for each in logs]
    rows, logs = rows[knows], [each for each, known in zip(logs, knows, strict=True) if known]
    fused = [
        fusion.fused(own, theirs) for own, theirs in zip(rows["log_likelihoods"], logs, strict=True)
    ]
    return {EXPERT: score_rows(rows, EXPERT, logs), FUSED: score_rows(rows, FUSED, fused)}


def fusion_notes(scorer: Any, split: str) -> list[str]:
    """Say where late fusion is measured on the very split it may have been fitted on."""
    if split != "val" or getattr(scorer, "fusion", None) is None:
        return []
    return ["late fusion is fitted on a val split: its figures on one are not of unseen faces"]
