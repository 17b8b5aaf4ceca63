"""The expert's share in training rows: its inputs, its verdict, its targets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from data_pipeline.records import QA, FaceRecord
from face_mllm.experts.joined.look import Look
from face_mllm.experts.joined.settings import AUTO, IN_SAMPLE, ExpertSettings
from face_mllm.experts.joined.verdict import Verdicts, told
from face_mllm.features.cache import Columns, FeatureCache, content_key, face_features
from face_mllm.progress import Progress

if TYPE_CHECKING:
    from face_mllm.experts.joined.expert import JoinedExpert
    from face_mllm.rows import FaceRows

BATCH = 16


class ExpertRows:
    """What the expert adds to each visit of a face.

    Args:
        expert: as joined to the model.
        settings: of the stage.
    """

    def __init__(self, expert: JoinedExpert, settings: ExpertSettings | None) -> None:
        settings = settings or ExpertSettings()
        self.expert = expert
        self.weight = settings.loss_weight if expert.trains_along else 0.0
        self.verdicts: Verdicts | None = None
        if expert.base.text and settings.verdicts not in (AUTO, IN_SAMPLE):
            self.verdicts = Verdicts(Path(settings.verdicts), expert.classes)
        self.cache: FeatureCache | None = None

    @property
    def sees_faces(self) -> bool:
        """Whether a visit needs the expert's own look at the face."""
        base = self.expert.base
        return base.token or (base.text and self.verdicts is None)

    def order(self) -> dict[str, Any]:
        """What of the expert decides a step; it must not change within a run."""
        if not (self.expert.base.token or self.expert.base.text):
            return {}
        identity = json.dumps(self.expert.identity(), sort_keys=True)
        about = dataclasses.asdict(self.expert.base) | {"loss_weight": self.weight}
        if self.verdicts:
            about["verdicts"] = sha256(self.verdicts.path.read_bytes()).hexdigest()
        kept = {key: value for key, value in about.items() if key not in ("source", "fusion")}
        return {"expert": kept | {"identity": sha256(identity.encode()).hexdigest()}}

    def told(self, record: FaceRecord, asked: Sequence[QA]) -> list[QA]:
        """Questions with the verdict before each; as they are where it is switched off."""
        if not self.expert.base.text:
            return list(asked)
        logs = self.verdicts.of(record.id) if self.verdicts else self.look(record).logs[0]
        words = self.expert.words(logs)
        return [dataclasses.replace(qa, question=told(words, qa.question)) for qa in asked]

    def inputs(self, record: FaceRecord, answer_weight: float) -> dict[str, torch.Tensor]:
        """The model's arguments for one face, without the axis of faces.

        A labelled face's own loss weighs ``loss_weight`` times as much as all its answers
        together, so the sum divides by the answers' weight as the language loss does and no
        number of micro-batches or processes changes the step.
        """
        if not self.expert.base.token:
            return {}
        given = {name: value[0] for name, value in self.expert.inputs(self.look(record)).items()}
        if self.weight:
            word = record.labels.get("expression")
            known = word in self.expert.classes
            target = self.expert.classes.index(word) if known else 0
            given["expert_targets"] = torch.tensor(target)
            given["expert_weights"] = torch.tensor(self.weight * answer_weight * known)
        return given

    def look(self, record: FaceRecord) -> Look:
        """What the expert sees, from the cache where it was computed."""
        if self.cache is None:
            return self.expert.look([record.open_image()])
        found = self.cache.gather([content_key(record)])
        seen = found.get("seen")
        if self.expert.trains_along and self.expert.reads == "pixels":
            seen = self.expert.pixels([record.open_image()])
        return Look(found["features"], seen, found["vectors"], found["logs"])

    def fill(self, rows: FaceRows, accelerator: Any, progress: Progress | None = None) -> None:
        """Look at every face the run visits once, each process at its share; collective.

        Without this a face is looked at on each visit. Where the head trains along, only what
        CLIP makes of the face is taken from the cache.
        """
        if not self.sees_faces:
            return
        identity = {**self.expert.identity(), "reads": self.expert.trains_along}
        cache = FeatureCache(identity)
        share = rows.visited()[accelerator.process_index :: accelerator.num_processes]

        def counted(done: int, _total: int, _text: str) -> None:
            if progress:
                progress(done, len(share), "expert")

        if share:
            records = (FaceRecord.from_row(rows.records[face]) for face in share)
            face_features(cache, records, self._columns, batch=BATCH, progress=counted)
        accelerator.wait_for_everyone()
        cache.refresh()
        self.cache = cache

    def _columns(self, images: list[Image.Image]) -> Columns:
        look = self.expert.look(images)
        made = {"vectors": look.vectors, "logs": look.logs, "features": look.features}
        if self.expert.trains_along and self.expert.reads == "tokens" and look.seen is not None:
            made["seen"] = look.seen
        return made


def stacked(given: Sequence[dict[str, torch.Tensor] | None]) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's arguments of several faces, [F, ...] each."""
    names = dict.fromkeys(name for each in given for name in each or ())
    for name in names:
        yield name, torch.stack([each[name] for each in given if each is not None])
