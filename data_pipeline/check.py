"""``data check``: are built datasets what they claim to be?

Reads every face once, with bounded memory (hashes and counts, never pictures). A *problem* makes
the dataset unfit and the command exit 1; a *note* is worth knowing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.findings import Finding, Report
from data_pipeline.labels.leaks import mentions
from data_pipeline.labels.validate import contradictions, validate_labels
from data_pipeline.overlaps import known_overlaps, origins
from data_pipeline.questions.forms import digest
from data_pipeline.records import (
    SPLITS,
    FaceRecord,
    iter_records,
    iter_rows,
    read_manifest,
    shards_of,
)
from data_pipeline.tables import Progress
from data_pipeline.tally import label_words
from data_pipeline.twins import Part, Twins
from face_mllm.errors import UserError

RARE_SHARE = 0.01
MIN_SIDE = 16


def check(*roots: str | Path, progress: Progress | None = None) -> Report:
    """Check one built dataset, or several that are used together, such as a train and a test set.

    Looks for unreadable and tiny pictures, the same picture twice (by content; across splits,
    sources and datasets by a perceptual hash, mirrored too), sources known to overlap, people in
    two splits, malformed or contradicting labels, answers outside their choices, mentions of
    held-out attributes, and lopsided answers.

    Args:
        roots: folders of built datasets or of synthetic faces.
        progress: called with (done, in all, what is going on).

    Raises:
        UserError: when a folder holds no faces.
    """
    datasets = _named([Path(root) for root in roots])
    for root in datasets.values():
        if not any(shards_of(root, split) for split in SPLITS):
            raise UserError(f"{root}: not a built dataset", "give the folder `data build` wrote")
    ids = (row for root in datasets.values() for s in SPLITS for row in iter_rows(root, s, ["id"]))
    total, done = sum(1 for _ in ids), 0
    progress = progress or (lambda *_: None)
    checker = _Checker({name: _manifest(root) for name, root in datasets.items()})
    for name, root in datasets.items():
        for record in iter_records(root):
            checker.add(record, name)
            done += 1
            progress(done, total, "checking")
    return checker.finish(progress)


def _named(roots: list[Path]) -> dict[str, Path]:
    """Name several datasets by their folders, or whole paths where those are alike; one by none."""
    if len(roots) == 1:
        return {"": roots[0]}
    short = {root.resolve().name: root for root in roots}
    return short if len(short) == len(roots) else {str(root): root for root in roots}


def _manifest(root: Path) -> dict[str, Any]:
    return read_manifest(root) if (root / "manifest.json").is_file() else {}


class _Checker:
    def __init__(self, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        self.manifests = manifests
        self.held_out = {
            name: tuple(manifest.get("holdout_attributes") or ())
            for name, manifest in manifests.items()
        }
        self.report = Report()
        self.faces: Counter[Part] = Counter()
        self.ids: set[int] = set()
        self.subjects: dict[int, Part] = {}
        self.twins = Twins()
        self.answers: dict[tuple[str, str, str], Counter[str]] = {}
        self.classes: dict[tuple[str, str], dict[str, Counter[str]]] = {}
        self.parts: dict[Part, Part] = {}

    def add(self, record: FaceRecord, dataset: str) -> None:
        part = Part(dataset, record.source, record.split)
        part = self.parts.setdefault(part, part)  # one object for all its faces
        self.faces[part] += 1
        self.report.faces[str(part)] = self.report.faces.get(str(part), 0) + 1
        found = (
            *self._identity(record, part),
            *_label_findings(record),
            *_question_findings(record, self.held_out[dataset]),
            *self._picture(record, part),
        )
        for finding in found:
            self.report.add(finding)
        self._count(record, dataset)

    def finish(self, progress: Progress) -> Report:
        for finding in self.twins.alike(progress):
            self.report.add(finding)
        known = origins(self.faces, self.manifests)
        for finding in (*known_overlaps(known, self.twins.shared), *self._balance()):
            self.report.add(finding)
        return self.report

    def _identity(self, record: FaceRecord, part: Part) -> Iterator[Finding]:
        key = digest(part.dataset, record.id)
        if key in self.ids:
            yield Finding("id twice", record.id, "two records have this id")
        self.ids.add(key)
        met = self.subjects.setdefault(digest(record.subject), part)
        if met.split != part.split:
            detail = f"person {record.subject} is in {met} and {part}"
            yield Finding("subject leak", record.id, detail)

    def _picture(self, record: FaceRecord, part: Part) -> Iterator[Finding]:
        try:
            image = record.open_image()
        except UserError as error:
            yield Finding("unreadable image", record.id, error.message)
            return
        if min(image.size) < MIN_SIDE:
            detail = f"{image.width} x {image.height} px"
            yield Finding("tiny image", record.id, detail)
        yield from self.twins.add(record, part, image)

    def _count(self, record: FaceRecord, dataset: str) -> None:
        for key, name, word in label_words(record.labels):
            if name == "all":
                splits = self.classes.setdefault((dataset, key), {})
                splits.setdefault(record.split, Counter())[word] += 1
        if record.split == "train":
            for qa in record.qa:
                if qa.choices:
                    answers = self.answers.setdefault((dataset, qa.task, qa.name), Counter())
                    answers[qa.answer] += 1

    def _balance(self) -> Iterator[Finding]:
        for (dataset, task, name), answers in sorted(self.answers.items()):
            rarer = min(answers["yes"], answers["no"])
            if set(answers) <= {"yes", "no"} and rarer < RARE_SHARE * answers.total():
                detail = f"{dict(answers)}: the rarer answer is under {RARE_SHARE:.0%}"
                where = f"{task} {name}" + (f" of {dataset}" if dataset else "")
                yield Finding("lopsided answers", where, detail, problem=False)
        for (dataset, key), splits in sorted(self.classes.items()):
            known = {word for counts in splits.values() for word in counts}
            for split, counts in sorted(splits.items()):
                part = Part(dataset, "", split)
                if missing := sorted(known - set(counts)):
                    detail = f"no {', '.join(missing)} in {part}"
                    yield Finding("missing class", key, detail, problem=False)
                if rare := sorted(w for w, n in counts.items() if n < RARE_SHARE * counts.total()):
                    detail = f"under {RARE_SHARE:.0%} of {part}: {', '.join(rare)}"
                    yield Finding("rare class", key, detail, problem=False)


def _label_findings(record: FaceRecord) -> Iterator[Finding]:
    problems = validate_labels(record.labels)
    yield from (Finding("bad label", record.id, problem) for problem in problems)
    for _, detail in () if problems else contradictions(record.labels):
        yield Finding("label conflict", record.id, detail)


def _question_findings(record: FaceRecord, held_out: tuple[str, ...]) -> Iterator[Finding]:
    for qa in record.qa:
        if qa.choices and qa.answer not in qa.choices:
            detail = f"{qa.question!r}: answer {qa.answer!r} is none of the choices"
            yield Finding("bad answer", record.id, detail)
        if not qa.answer.strip() or not qa.question.strip() or qa.weight < 0:
            yield Finding("bad answer", record.id, f"{qa.task} {qa.name}: empty or negative weight")
    texts = (text for qa in record.qa for text in (qa.question, qa.answer, *qa.choices))
    for text in dict.fromkeys((record.caption, *texts)):
        if hit := mentions(text, held_out):
            yield Finding("held-out leak", record.id, f"{text!r} mentions {hit[1]!r}")
