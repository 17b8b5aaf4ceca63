"""What goes into the manifest: counts per split and label, dropped rows, leaks, identities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from data_pipeline.keys import Keys
from data_pipeline.labels.action_units import ACTIVE_THRESHOLD, is_active
from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.leaks import mentions
from data_pipeline.questions.forms import digest
from data_pipeline.records import QA, SPLITS, FaceRecord
from data_pipeline.sources import Dropped
from face_mllm.errors import UserError

MAX_EXAMPLES = 5


@dataclass
class Drops:
    """Dropped rows of one source: a count per reason and the first few places."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, drop: Dropped) -> None:
        """Count one dropped row."""
        self.counts[drop.reason] += 1
        if len(self.examples[drop.reason]) < MAX_EXAMPLES:
            self.examples[drop.reason].append(drop.where)

    def merge(self, later: Drops) -> None:
        """Add the drops of the rows that follow."""
        self.counts.update(later.counts)
        for reason, places in later.examples.items():
            self.examples[reason] = (self.examples[reason] + places)[:MAX_EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """Return reason -> {count, examples} in order of reason."""
        return {
            reason: {"count": n, "examples": self.examples[reason]}
            for reason, n in sorted(self.counts.items())
        }


@dataclass
class Moments:
    """Count, mean, deviation and range of a number, in one pass (Welford 1962)."""

    n: int = 0
    mean: float = 0.0
    square: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """Take in one value."""
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.square += step * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    def as_dict(self) -> dict[str, float]:
        """Return n, mean, standard deviation, min and max, rounded to 4 digits."""
        deviation = math.sqrt(self.square / self.n)
        rounded = {"mean": self.mean, "std": deviation, "min": self.low, "max": self.high}
        return {"n": self.n} | {key: round(value, 4) for key, value in rounded.items()}


@dataclass
class Account:
    """What happened to the rows of one source entry, and which input they came from."""

    fingerprint: str = ""
    read: int = 0
    not_taken: int = 0
    names: Counter[str] = field(default_factory=Counter)  # of the source, as its records say it
    kept: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    drops: Drops = field(default_factory=Drops)
    policies: Counter[str] = field(default_factory=Counter)
    found_by: Counter[str] = field(default_factory=Counter)
    not_cut_out: int = 0  # faces whose box the source gives, kept with all that is around them
    train_questions: int = 0
    train_weight: int = 0  # in parts of WEIGHT_UNIT, so that the order of faces does not matter

    def add(self, record: FaceRecord) -> None:
        """Count one kept face."""
        self.kept[record.split] += 1
        self.names[record.source] += 1
        self.licences[record.licence or "unstated"] += 1
        self.not_cut_out += bool(record.box) and not record.crop
        if record.crop:
            self.policies[record.crop["policy"]] += 1
            self.found_by[record.crop["found_by"]] += 1

    def merge(self, later: Account) -> None:
        """Add the account of the rows that follow."""
        self.drops.merge(later.drops)
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(later, one.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, int):
                setattr(self, one.name, mine + theirs)


def label_words(
    labels: dict[str, Any], threshold: float = ACTIVE_THRESHOLD
) -> Iterator[tuple[str, str, str]]:
    """Yield (label key, name, word) of the countable labels; AUs count as active or not."""
    for key in ("expression", "compound_expression", "gender", "age_band"):
        if key in labels:
            yield key, "all", labels[key]
    for name, value in labels.get("attributes", {}).items():
        yield "attributes", name, "true" if value else "false"
    for name, value in labels.get("action_units", {}).items():
        yield "action_units", name, "active" if is_active(value, threshold) else "inactive"


def label_numbers(labels: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, number) of the numeric labels."""
    if "age" in labels:
        yield "age", labels["age"]
    yield from labels.get("head_pose", {}).items()


@dataclass
class LabelTally:
    """Counts of one split."""

    faces: int = 0
    questions: int = 0
    subjects: set[int] = field(default_factory=set)
    people: int = 0  # of faces that a build counts by their words alone
    words: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    numbers: dict[str, Moments] = field(default_factory=dict)
    tasks: Counter[str] = field(default_factory=Counter)

    def add(self, record: FaceRecord, threshold: float = ACTIVE_THRESHOLD) -> None:
        """Count one face and its labels, units as active from ``threshold``."""
        self.faces += 1
        self.subjects.add(digest(record.subject))
        for key, name, word in label_words(record.labels, threshold):
            self.add_word(key, name, word)
        for name, value in label_numbers(record.labels):
            self.add_number(name, value)

    def add_word(self, key: str, name: str, word: str, count: int = 1) -> None:
        """Count a countable label."""
        self.words.setdefault((key, name), Counter())[word] += count

    def add_number(self, name: str, value: float) -> None:
        """Take in a numeric label."""
        self.numbers.setdefault(name, Moments()).add(float(value))

    def add_questions(self, tasks: Mapping[str, int]) -> None:
        """Count questions by their task."""
        self.questions += sum(tasks.values())
        self.tasks.update(tasks)

    def as_dict(self) -> dict[str, Any]:
        """Return what the manifest says of the split."""
        labels: dict[str, Any] = {}
        for (key, name), words in sorted(self.words.items()):
            counts = dict(sorted(words.items()))
            if name == "all":
                labels[key] = counts
            else:
                labels.setdefault(key, {})[name] = counts
        labels |= {name: moments.as_dict() for name, moments in sorted(self.numbers.items())}
        return {
            "faces": self.faces,
            "subjects": len(self.subjects) + self.people,
            "questions": self.questions,
            "tasks": dict(sorted(self.tasks.items())),
            "labels": labels,
        }


Face = tuple[str, str, str, str]
"""(id, source, subject, split)"""


@dataclass
class Identities:
    """Refuses an id seen twice and a subject in two splits; 16 bytes a face."""

    ids: Keys = field(default_factory=Keys)
    people: dict[str, Keys] = field(default_factory=lambda: {split: Keys() for split in SPLITS})

    def add(self, faces: Sequence[Face]) -> None:
        """Register some faces.

        Raises:
            UserError: duplicate id, or a subject that already stands in another split.
        """
        new = self.ids.add(_keys((key,) for key, *_ in faces))
        if not new.all():
            raise UserError(
                f"id {faces[int(np.argmin(new))][0]!r} occurs twice",
                "give the sources different `name:` or mend the ids",
            )
        for split, keys in self.people.items():
            mine = [face for face in faces if face[3] == split]
            subjects = _keys((subject,) for _, _, subject, _ in mine)
            for other in SPLITS:
                there = self.people[other].has(subjects)
                if other != split and there.any():
                    raise _in_two_splits(mine[int(np.argmax(there))], other)
            keys.add(subjects)


def _keys(parts: Iterable[tuple[str, ...]]) -> np.ndarray:
    return np.fromiter((digest(*part) for part in parts), np.uint64)


def _in_two_splits(face: Face, other: str) -> UserError:
    key, source, subject, split = face
    return UserError(
        f"{key}: subject {subject!r} of {source} is in both {other} and {split}",
        "drop the split column to use the hash split by subject, or mend the subjects",
    )


@dataclass
class LeakCheck:
    """Reads every text of the dataset for words of the held-out attributes."""

    held_out: tuple[str, ...]
    texts: int = 0
    captions_removed: int = 0
    questions_removed: int = 0

    def clean_caption(self, caption: str) -> str:
        """Return a source's own caption, or nothing when it mentions a held-out attribute."""
        if mentions(caption, self.held_out) is None:
            return caption
        self.captions_removed += 1
        return ""

    def clean_questions(self, questions: Iterable[QA]) -> tuple[QA, ...]:
        """Return a source's own questions without those that mention a held-out attribute."""
        asked = tuple(questions)
        clean = tuple(qa for qa in asked if not any(map(self._mentions, _words(qa))))
        self.questions_removed += len(asked) - len(clean)
        return clean

    def _mentions(self, text: str) -> bool:
        return mentions(text, self.held_out) is not None

    def add(self, record: FaceRecord) -> None:
        """Check one record.

        Raises:
            UserError: on the first text that gives a held-out attribute away.
        """
        self.texts += bool(record.caption) + sum(2 + len(qa.choices) for qa in record.qa)
        for text in _texts(record) if self.held_out else ():
            hit = mentions(text, self.held_out)
            if hit:
                raise UserError(
                    f"{record.id}: {text!r} mentions {hit[1]!r}, which gives the held-out "
                    f"attribute {hit[0]!r} away",
                    "reword the template or take the attribute off holdout_attributes",
                )

    def merge(self, later: LeakCheck) -> None:
        """Add what the check of other records counted."""
        self.texts += later.texts
        self.captions_removed += later.captions_removed
        self.questions_removed += later.questions_removed

    def as_dict(self) -> dict[str, Any]:
        """Return the check's record: what was searched for, in how many texts, with 0 hits."""
        terms = {name: list(attribute(name).terms) for name in self.held_out}
        return {
            "held_out": terms,
            "texts_checked": self.texts,
            "leaks": 0,
            "captions_removed": self.captions_removed,
            "questions_removed": self.questions_removed,
        }


def _texts(record: FaceRecord) -> Iterator[str]:
    if record.caption:
        yield record.caption
    for qa in record.qa:
        yield from _words(qa)


def _words(qa: QA) -> tuple[str, ...]:
    return (qa.question, qa.answer, *qa.choices)


def new_tallies() -> dict[str, LabelTally]:
    """Return an empty tally per split."""
    return {split: LabelTally() for split in SPLITS}
