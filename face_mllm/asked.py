"""What `describe` asks of a face: the closed questions a model was trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from data_pipeline.manifest import question_sets
from data_pipeline.questions import QuestionSet, closed_questions
from data_pipeline.records import load_split


def asked_questions(data: Path, manifest: dict[str, Any], faces: int = 200) -> list[dict]:
    """The closed questions of the training split in canonical wording: what `describe` asks."""
    if "question_set" not in manifest:
        return []
    whole, sets = QuestionSet.from_manifest(manifest), question_sets(manifest)
    found: dict[tuple[str, str], dict] = {}
    for row in load_split(data, "train").remove_columns(["image", "qa"]).take(faces):
        question_set = sets.get(row["source"], whole)
        for asked in closed_questions(json.loads(row["labels"]), question_set):
            entry = dataclasses.asdict(asked)
            entry.pop("truth")
            found.setdefault((asked.task, asked.name), entry)
    held_out = set(manifest.get("holdout_attributes") or ())
    return [entry for (_, name), entry in found.items() if name not in held_out]
