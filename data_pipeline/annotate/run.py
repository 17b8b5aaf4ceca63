"""``data annotate``: captions and attribute labels for faces from one or two vision models."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.annotate.asking import Asker
from data_pipeline.annotate.estimate import Estimate, describe_estimates, estimate
from data_pipeline.annotate.finish import Job
from data_pipeline.annotate.inputs import Faces, open_faces
from data_pipeline.annotate.journal import (
    UNANSWERED,
    Journal,
    held_folder,
    journal_folder,
    open_journal,
    remove_folder,
)
from data_pipeline.annotate.pace import Budget, Stop
from data_pipeline.annotate.questions import Questions
from data_pipeline.annotate.reply import Annotator
from data_pipeline.annotate.spec import AnnotatorSpec, ArtifactSpec, EndpointSpec, LocalSpec
from data_pipeline.records import read_manifest
from data_pipeline.tables import Progress
from face_mllm.errors import UserError
from face_mllm.outputs import check_out

Confirm = Callable[[str, bool], bool]
"""Shown the estimate and whether pictures leave this machine; False ends the run."""


@dataclass(frozen=True)
class Options:
    """How a run goes on, apart from what is asked.

    Args:
        max_cost: US dollars never exceeded, earlier runs of the job included.
        limit: only the first so many faces.
        keep_labels: labels of the input stay, and win.
        skip_unanswered: finish without the faces that got no answer.
    """

    max_cost: float | None = None
    limit: int | None = None
    keep_labels: bool = False
    skip_unanswered: bool = False


def annotate(
    data: str | Path,
    out: str | Path,
    annotators: Sequence[AnnotatorSpec],
    questions: Questions,
    confirm: Confirm,
    options: Options | None = None,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Annotate faces; the same call again goes on after an interruption.

    Args:
        data: built dataset, recipe, or folder of pictures.
        out: folder to make; the journal lies beside it until then.
        annotators: one, or two for consensus.
        questions: what is asked.
        confirm: see :data:`Confirm`.
        options: limits and switches.
        progress: called with (faces done, faces in all, who is asked).

    Returns:
        The manifest; None when ``confirm`` said no.

    Raises:
        UserError: bad input, an endpoint that is down or refuses, the budget, or faces that got
            no answer. What was answered is kept and not asked again.
    """
    out = Path(out)
    options = options or Options()
    finished = _finished(out)
    if finished is not None:
        return finished
    with held_folder(out) as folder:
        faces = open_faces(data, folder, options.limit, progress)
        settings = _settings(annotators, questions)
        begun = {**settings, "input": faces.about["fingerprint"]}
        with open_journal(folder, begun) as journal:
            run = _Run(faces, annotators, questions, journal, options)
            if not run.agreed(confirm):
                return None
            run.ask(progress or (lambda *_: None))
            run.check_answered()
            labels = tuple(spec.label for spec in annotators)
            job = Job(
                labels,
                {**settings, "endpoints": _endpoints(annotators)},
                faces.about,
                options.keep_labels,
            )
            manifest = job.write(faces, journal, out)
    remove_folder(out)
    return manifest


def _finished(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a run that was killed after its last step; refuse a used folder."""
    if not journal_folder(out).is_dir() or not out.is_dir():
        check_out(out)
    if not out.exists() or not any(out.iterdir()):
        return None
    manifest = read_manifest(out)
    if "annotation" not in manifest:
        raise UserError(f"{out} holds something else", "choose another --out or remove it")
    remove_folder(out)
    return manifest


def _settings(annotators: Sequence[AnnotatorSpec], questions: Questions) -> dict[str, Any]:
    return {
        "annotators": [spec.identity() for spec in annotators],
        "attributes": list(questions.attributes),
        "caption": questions.caption,
        "prompt_hash": hashlib.sha256(questions.prompt.encode()).hexdigest()[:16],
    }


def _endpoints(annotators: Sequence[AnnotatorSpec]) -> dict[str, str]:
    return {spec.label: spec.base_url for spec in annotators if isinstance(spec, EndpointSpec)}


@dataclass
class _Run:
    faces: Faces
    annotators: Sequence[AnnotatorSpec]
    questions: Questions
    journal: Journal
    options: Options
    stop: Stop = field(default_factory=Stop)

    def agreed(self, confirm: Confirm) -> bool:
        """Say what is left to do and what it may cost; True when nothing stands against it."""
        estimates = [
            estimate(spec, self.questions, left, self.journal.used(n).cost)
            for n, (spec, left) in enumerate(zip(self.annotators, self._left(), strict=True))
        ]
        self._affordable(estimates)
        remote = any(found.faces and found.host for found in estimates)
        if not any(found.faces for found in estimates):
            return True
        return confirm(describe_estimates(estimates, self.options.max_cost), remote)

    def _left(self) -> list[int]:
        left = [0] * len(self.annotators)
        for key in self.faces.ids():
            for number in range(len(left)):
                left[number] += not self.journal.settled(number, key)
        return left

    def _affordable(self, estimates: Sequence[Estimate]) -> None:
        limit = self.options.max_cost
        if limit is None:
            return
        unpriced = [found.label for found in estimates if found.usd is None and found.faces]
        if unpriced:
            raise UserError(
                f"--max-cost needs the prices of {unpriced[0]}",
                "add input_price=...,output_price=... (US dollars per million tokens)",
            )
        total = sum((found.usd or 0) + found.spent for found in estimates)
        if total > limit and any(found.faces for found in estimates):
            raise UserError(
                f"about {total:.2f} USD would exceed --max-cost {limit:g}",
                "raise it, or take fewer faces with --limit",
            )

    def ask(self, progress: Progress) -> None:
        """Ask one annotator after the other."""
        spent = sum(self.journal.used(n).cost for n in range(len(self.annotators)))
        budget = Budget(self.options.max_cost, spent)
        for number, (spec, left) in enumerate(zip(self.annotators, self._left(), strict=True)):
            if left:
                self._ask(spec, number, left, budget, progress)

    def _ask(
        self, spec: AnnotatorSpec, number: int, left: int, budget: Budget, progress: Progress
    ) -> None:
        annotator, key = _annotator(spec, self.questions, budget, self.stop)
        asker = Asker(annotator, number, spec.label, self.questions, self.journal, self.stop, key)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress(done, left, f"asking {spec.label}")

        with closing(annotator):
            asker.ask_all(self.faces, count)

    def check_answered(self) -> None:
        """Refuse to finish while faces wait for an answer, unless that was asked for."""
        waiting = sum(self._left())
        if not waiting or self.options.skip_unanswered:
            return
        raise UserError(
            f"{waiting} questions got no answer ({self._example()})",
            "run the same command again to ask them once more, or add --skip-unanswered",
        )

    def _example(self) -> str:
        for key in self.faces.ids():
            for number in range(len(self.annotators)):
                entry = self.journal.entry(number, key)
                if entry and entry.kind == UNANSWERED:
                    return f"{key}: {entry.reason}"
        return "never asked"


def _annotator(
    spec: AnnotatorSpec, questions: Questions, budget: Budget, stop: Stop
) -> tuple[Annotator, str]:
    """Return the annotator of a spec, loaded, and its key."""
    if isinstance(spec, EndpointSpec):
        from data_pipeline.annotate.endpoint import Endpoint

        endpoint = Endpoint(spec, questions, budget, stop)
        return endpoint, endpoint.key
    from data_pipeline.annotate.local import LocalModel, OwnModel

    if isinstance(spec, LocalSpec):
        return LocalModel(spec, questions), ""
    assert isinstance(spec, ArtifactSpec)
    return OwnModel(spec, questions), ""
