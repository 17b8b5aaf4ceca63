"""``data check``: is a built dataset what it claims to be?

Reads every face once, with bounded memory (hashes and counts, never pictures). A *problem* makes
the dataset unfit and the command exit 1; a *note* is worth knowing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from data_pipeline.labels.leaks import mentions
from data_pipeline.labels.validate import validate_labels
from data_pipeline.questions.forms import digest
from data_pipeline.records import (
    SPLITS,
    FaceRecord,
    iter_records,
    iter_rows,
    read_manifest,
    shards_of,
)
from data_pipeline.tables import Progress, rendered
from data_pipeline.tally import label_words
from face_mllm.errors import UserError

HASH_SIDE = 16
NEAR_BITS = 12
"""Two 256-bit hashes this close count as one picture. Of 1,500 photographs saved anew (JPEG quality
60, or scaled by 0.7) 99 % moved by at most 11 bits; the nearest two distinct ones differ by 31."""

FLAT_BITS = 16
"""A hash with fewer bits set (or unset) is of a near-uniform picture and says nothing."""

RARE_SHARE = 0.01
MIN_SIDE = 16
MAX_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Args:
        kind: what sort of thing, such as ``duplicate``.
        where: the record or records.
        detail: what is wrong, in words.
        problem: True when it makes the dataset unfit.
    """

    kind: str
    where: str
    detail: str
    problem: bool = True


@dataclass
class Report:
    """What :func:`check` found.

    Args:
        faces: faces per split.
        findings: at most 20 of each kind.
        counts: every finding per kind, listed or not.
    """

    faces: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Count a finding and list it while there are few of its kind."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= MAX_LISTED:
            self.findings.append(finding)

    @property
    def problems(self) -> list[Finding]:
        """The findings that make the dataset unfit."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def text(self) -> str:
        """A table of the findings, problems first, and the verdict."""
        faces = ", ".join(f"{split} {count}" for split, count in self.faces.items())
        verdict = "nothing wrong" if self.ok else "something is wrong"
        parts = [_table(self)] if self.findings else []
        return rendered(*parts, f"faces: {faces}; {verdict}")

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def check(root: str | Path, progress: Progress | None = None) -> Report:
    """Check a built dataset.

    Looks for unreadable and tiny pictures, the same picture twice (by content, and across splits
    by a perceptual hash), people in two splits, malformed or contradicting labels, answers
    outside their choices, mentions of held-out attributes, and lopsided answers.

    Args:
        root: folder of a built dataset or of synthetic faces.
        progress: called with (faces done, faces in all, what is going on).

    Raises:
        UserError: when the folder holds no faces.
    """
    root = Path(root)
    if not any(shards_of(root, split) for split in SPLITS):
        raise UserError(f"{root}: not a built dataset", "give the folder `data build` wrote")
    checker = _Checker(_held_out(root))
    total = sum(1 for split in SPLITS for _ in iter_rows(root, split, ["id"]))
    for done, record in enumerate(iter_records(root), start=1):
        checker.add(record)
        if progress:
            progress(done, total, "checking")
    return checker.finish()


def _held_out(root: Path) -> tuple[str, ...]:
    if not (root / "manifest.json").is_file():
        return ()
    return tuple(read_manifest(root).get("holdout_attributes") or ())


class _Checker:
    def __init__(self, held_out: tuple[str, ...]) -> None:
        self.held_out = held_out
        self.report = Report()
        self.ids: set[int] = set()
        self.subjects: dict[int, str] = {}
        self.contents: dict[bytes, tuple[str, str, int]] = {}
        self.looks: dict[str, list[np.ndarray]] = defaultdict(list)
        self.names: dict[str, list[str]] = defaultdict(list)
        self.answers: dict[tuple[str, str], Counter[str]] = {}
        self.classes: dict[str, dict[str, Counter[str]]] = defaultdict(dict)

    def add(self, record: FaceRecord) -> None:
        self.report.faces[record.split] = self.report.faces.get(record.split, 0) + 1
        found = (
            *self._identity(record),
            *_label_findings(record),
            *_question_findings(record, self.held_out),
            *self._picture(record),
        )
        for finding in found:
            self.report.add(finding)
        self._count(record)

    def finish(self) -> Report:
        for finding in (*self._near_duplicates(), *self._balance()):
            self.report.add(finding)
        return self.report

    def _identity(self, record: FaceRecord) -> Iterator[Finding]:
        key = digest(record.id)
        if key in self.ids:
            yield Finding("id twice", record.id, "two records have this id")
        self.ids.add(key)
        split = self.subjects.setdefault(digest(record.source, record.subject), record.split)
        if split != record.split:
            detail = f"person {record.subject} is in {split} and {record.split}"
            yield Finding("subject leak", record.id, detail)

    def _picture(self, record: FaceRecord) -> Iterator[Finding]:
        try:
            image = record.open_image()
        except UserError as error:
            yield Finding("unreadable image", record.id, error.message)
            return
        if min(image.size) < MIN_SIDE:
            detail = f"{image.width} x {image.height} px"
            yield Finding("tiny image", record.id, detail)
        content = hashlib.sha256(image.tobytes()).digest()[:16]
        labels = digest(sorted(label_words(record.labels)))
        other, split, told = self.contents.setdefault(content, (record.id, record.split, labels))
        if other != record.id:
            yield from _same_picture(record, other, split, told == labels)
            return
        self.looks[record.split].append(difference_hash(image))
        self.names[record.split].append(record.id)

    def _near_duplicates(self) -> Iterator[Finding]:
        splits = [split for split in SPLITS if self.looks[split]]
        for place, one in enumerate(splits):
            for other in splits[place + 1 :]:
                pairs = near_pairs(np.array(self.looks[one]), np.array(self.looks[other]))
                for a, b, bits in pairs:
                    where = f"{self.names[one][a]} ({one}), {self.names[other][b]} ({other})"
                    detail = f"look the same ({bits} of {HASH_SIDE**2} hash bits differ)"
                    yield Finding("near-duplicate", where, detail)

    def _count(self, record: FaceRecord) -> None:
        for key, name, word in label_words(record.labels):
            if name == "all":
                self.classes[key].setdefault(record.split, Counter())[word] += 1
        if record.split == "train":
            for qa in record.qa:
                if qa.choices:
                    self.answers.setdefault((qa.task, qa.name), Counter())[qa.answer] += 1

    def _balance(self) -> Iterator[Finding]:
        for (task, name), answers in sorted(self.answers.items()):
            total = sum(answers.values())
            if set(answers) <= {"yes", "no"}:
                rare = min(answers.get("yes", 0), answers.get("no", 0)) / total
                if rare < RARE_SHARE:
                    detail = f"{dict(answers)}: the rarer answer is under {RARE_SHARE:.0%}"
                    yield Finding("lopsided answers", f"{task} {name}", detail, problem=False)
        for key, splits in sorted(self.classes.items()):
            known = {word for counts in splits.values() for word in counts}
            for split, counts in sorted(splits.items()):
                if missing := sorted(known - set(counts)):
                    detail = f"no {', '.join(missing)} in {split}"
                    yield Finding("missing class", key, detail, problem=False)


def _label_findings(record: FaceRecord) -> Iterator[Finding]:
    for problem in validate_labels(record.labels):
        yield Finding("bad label", record.id, problem)
    labels = record.labels
    male = labels.get("attributes", {}).get("male")
    if male is not None and "gender" in labels and male != (labels["gender"] == "male"):
        detail = f"gender {labels['gender']} but attribute male {str(male).lower()}"
        yield Finding("label conflict", record.id, detail)


def _question_findings(record: FaceRecord, held_out: tuple[str, ...]) -> Iterator[Finding]:
    for qa in record.qa:
        if qa.choices and qa.answer not in qa.choices:
            detail = f"{qa.question!r}: answer {qa.answer!r} is none of the choices"
            yield Finding("bad answer", record.id, detail)
        if not qa.answer.strip() or not qa.question.strip() or qa.weight < 0:
            yield Finding("bad answer", record.id, f"{qa.task} {qa.name}: empty or negative weight")
    texts = [record.caption, *(text for qa in record.qa for text in (qa.question, qa.answer))]
    for text in texts:
        if hit := mentions(text, held_out):
            yield Finding("held-out leak", record.id, f"{text!r} mentions {hit[1]!r}")


def _same_picture(record: FaceRecord, other: str, split: str, agree: bool) -> Iterator[Finding]:
    where = f"{other} ({split}), {record.id} ({record.split})"
    if not agree:
        yield Finding("label conflict", where, "one picture, two sets of labels")
    across = split != record.split
    kind = "duplicate across splits" if across else "duplicate"
    yield Finding(kind, where, "the same pixels", problem=across)


def difference_hash(image: Image.Image) -> np.ndarray:
    """Return the difference hash of a picture: is each pixel darker than its right neighbour?

    dHash (Krawetz 2013) on a 17 x 16 grey thumbnail: survives new encoding and scaling.

    Returns:
        uint64 [4], 256 bits.
    """
    small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def near_pairs(
    one: np.ndarray, other: np.ndarray, most: int = NEAR_BITS, block: int = 512
) -> Iterator[tuple[int, int, int]]:
    """Yield (row of one, row of other, differing bits) of hashes at most ``most`` bits apart.

    Args:
        one: uint64 [n, 4].
        other: uint64 [m, 4].
        most: largest Hamming distance.
        block: rows compared at a time; memory is block x m x 32 bytes.
    """
    ones = np.bitwise_count(other).sum(axis=1, dtype=np.int32)
    clear = (ones >= FLAT_BITS) & (ones <= HASH_SIDE**2 - FLAT_BITS)
    places = np.flatnonzero(clear)
    for start in range(0, len(one), block):
        differing = one[start : start + block, None] ^ other[None, places]
        distance = np.bitwise_count(differing).sum(axis=2, dtype=np.int32)
        for row, column in zip(*np.nonzero(distance <= most), strict=True):
            yield int(start + row), int(places[column]), int(distance[row, column])


def _table(report: Report) -> Table:
    table = Table("", "what", "where", "detail", box=None, pad_edge=False)
    ordered = sorted(report.findings, key=lambda finding: (not finding.problem, finding.kind))
    for finding in ordered:
        style = "red" if finding.problem else "yellow"
        severity = Text("problem" if finding.problem else "note", style=style)
        kind = f"{finding.kind} ({report.counts[finding.kind]})"
        table.add_row(severity, *(Text(word) for word in (kind, finding.where, finding.detail)))
    return table
