"""The finished dataset: annotated faces, and beside them all that did not become a label.

``annotations.jsonl`` holds every annotator's answer per face, ``refused.jsonl`` refusals and
malformed answers with reason and raw text, ``disagreements.jsonl`` what two annotators said
differently.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from data_pipeline.annotate.agreement import Agreement, consensus, known_states
from data_pipeline.annotate.journal import ANSWER, UNANSWERED, Entry, Journal
from data_pipeline.annotate.questions import CAPTION, Answer, labels_of
from data_pipeline.records import DatasetWriter, FaceRecord, whole_folder
from data_pipeline.tables import rendered
from data_pipeline.tally import LabelTally, new_tallies
from face_mllm.errors import UserError

ANNOTATIONS, REFUSED = "annotations.jsonl", "refused.jsonl"
DISAGREEMENTS = "disagreements.jsonl"
INPUT_LABELS = "labels of the input"


@dataclass
class Job:
    """What a finished annotation is made from.

    Args:
        labels: names of the annotators.
        settings: what the answers depend on, for the manifest.
        about: the input, for the manifest.
        keep_labels: labels of the input stay, and win over the annotators'.
    """

    labels: tuple[str, ...]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    keep_labels: bool = False
    tallies: dict[str, LabelTally] = field(default_factory=new_tallies)
    refused: Counter[str] = field(default_factory=Counter)
    disputed: Counter[str] = field(default_factory=Counter)
    agreements: list[Agreement] = field(default_factory=list)

    def __post_init__(self) -> None:
        pairs = [(label, INPUT_LABELS) for label in self.labels]
        if len(self.labels) == 2:
            pairs.insert(0, (self.labels[0], self.labels[1]))
        self.agreements = [Agreement(pair) for pair in pairs]

    def write(self, faces: Iterable[FaceRecord], journal: Journal, out: Path) -> dict[str, Any]:
        """Write the dataset in the order of the input; the folder appears whole or not at all.

        Returns:
            The manifest.

        Raises:
            UserError: no face was annotated, or ``out`` holds files.
        """
        with whole_folder(out) as folder:
            with _Files(folder) as files:
                writer = DatasetWriter(folder)
                for face in faces:
                    self._add(face, journal, writer, files)
                writer.finish()
            if not sum(writer.counts.values()):
                raise self._nothing()
            manifest = self._manifest(journal)
            text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
            (folder / "manifest.json").write_text(text, encoding="utf-8")
            (folder / "README.md").write_text(card(out.name, manifest), encoding="utf-8")
        return manifest

    def _add(
        self, face: FaceRecord, journal: Journal, writer: DatasetWriter, files: _Files
    ) -> None:
        entries = [journal.entry(n, face.id) for n in range(len(self.labels))]
        said = [entry or Entry(face.id, n, UNANSWERED) for n, entry in enumerate(entries)]
        bad = [entry for entry in said if entry.kind != ANSWER]
        for entry in bad:
            self.refused[f"{self.labels[entry.annotator]}: {entry.kind}"] += 1
            files.refused(face.id, self.labels[entry.annotator], entry)
        answers = [entry.answer for entry in said]
        if not bad:
            files.annotated(face.id, dict(zip(self.labels, answers, strict=True)))
            record = self._annotated(face, answers, files)
            self.tallies[record.split].add(record)
            writer.add(record)

    def _annotated(self, face: FaceRecord, answers: list[Answer], files: _Files) -> FaceRecord:
        agreed, disputed = consensus(answers)
        for name, states in disputed.items():
            self.disputed[name] += 1
            files.disagreed(face.id, name, dict(zip(self.labels, states, strict=True)))
        self._compare(face, answers)
        machine: dict[str, Any] = {"attributes": labels_of(agreed)} if labels_of(agreed) else {}
        labels = _merged(face.labels, machine) if self.keep_labels else machine
        caption = agreed.get(CAPTION, face.caption if self.keep_labels else "")
        source = f"{face.source}+{'&'.join(self.labels)}"
        return replace(face, source=source, labels=labels, caption=caption, qa=())

    def _compare(self, face: FaceRecord, answers: list[Answer]) -> None:
        human = known_states(face.labels.get("attributes", {}))
        others = [(answer, human) for answer in answers]
        if len(answers) == 2:
            others.insert(0, (answers[0], answers[1]))
        for agreement, pair in zip(self.agreements, others, strict=True):
            agreement.add(*pair)

    def _nothing(self) -> UserError:
        why = ", ".join(f"{n} x {kind}" for kind, n in self.refused.most_common())
        return UserError(
            f"no face was annotated: {why or 'no faces'}",
            "the journal beside --out says why, face by face",
        )

    def _manifest(self, journal: Journal) -> dict[str, Any]:
        return {
            "format": 1,
            "version": version("face-mllm"),
            "holdout_attributes": [],
            "input": dict(self.about),
            "annotation": {
                **self.settings,
                "labels_by": "machine and input" if self.keep_labels else "machine",
                "usage": {label: _usage(journal, n) for n, label in enumerate(self.labels)},
                "refused": dict(sorted(self.refused.items())),
                "disagreements": dict(sorted(self.disputed.items())),
                "agreement": [found.as_dict() for found in self.agreements if found.pairs],
            },
            "splits": {split: t.as_dict() for split, t in self.tallies.items() if t.faces},
        }


class _Files:
    """The three files beside the shards."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._open: dict[str, TextIO] = {
            name: self._stack.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in (ANNOTATIONS, REFUSED, DISAGREEMENTS)
        }

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def annotated(self, key: str, answers: dict[str, Answer]) -> None:
        self._line(ANNOTATIONS, {"id": key, "answers": answers})

    def refused(self, key: str, annotator: str, entry: Entry) -> None:
        row = {"id": key, "annotator": annotator, "kind": entry.kind}
        self._line(REFUSED, row | {"reason": entry.reason, "raw": entry.raw})

    def disagreed(self, key: str, attribute: str, states: dict[str, str]) -> None:
        self._line(DISAGREEMENTS, {"id": key, "attribute": attribute, "said": states})

    def _line(self, name: str, row: dict[str, Any]) -> None:
        self._open[name].write(json.dumps(row, ensure_ascii=False) + "\n")


def _merged(labels: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Add machine attributes where the input knows nothing; a known gender is known as male."""
    told = {
        name: state
        for name, state in machine.get("attributes", {}).items()
        if not (name == "male" and "gender" in labels)
    }
    known = {**told, **labels.get("attributes", {})}
    return {**labels, "attributes": known} if known else labels


def _usage(journal: Journal, annotator: int) -> dict[str, Any]:
    used = journal.used(annotator)
    counts = {"tokens_in": used.tokens_in, "tokens_out": used.tokens_out}
    return counts | {"usd": round(used.cost, 6)}


CARD = """---
pretty_name: {name}
tags: [face, face-mllm, machine-annotated]
configs:
- config_name: default
  data_files:
{files}
---
# {name}

Machine annotations of faces by {who}, made with face-mllm {version}. Captions and attribute labels
are estimates of models, not statements of people; `source` names the annotator of every record.
{kept}An attribute that is absent is unknown.

| split | faces | people |
|---|---|---|
{splits}

`annotations.jsonl`: every answer. `refused.jsonl`: refusals and malformed answers.
`disagreements.jsonl`: what two annotators said differently, and is therefore unknown here.
`manifest.json`: settings, usage, agreement (percent, Cohen's kappa).

Turn it into questions with `face-mllm data build` and a recipe whose source is `records`. The
pictures keep the licences of their sources.
"""


def card(name: str, manifest: Mapping[str, Any]) -> str:
    """Return the README of an annotated dataset."""
    about = manifest["annotation"]
    public = {"val": "validation"}
    splits = manifest["splits"]
    kept = "Labels of the input were kept and win over the annotators'; `annotations.jsonl` tells "
    return CARD.format(
        name=name,
        version=manifest["version"],
        who=" and ".join(f"`{entry['name']}`" for entry in about["annotators"]),
        kept=f"{kept}which are theirs.\n" if about["labels_by"] != "machine" else "",
        files="\n".join(
            f"  - split: {public.get(split, split)}\n    path: {split}-*.parquet"
            for split in splits
        ),
        splits="\n".join(f"| {s} | {n['faces']} | {n['subjects']} |" for s, n in splits.items()),
    )


def summary(manifest: Mapping[str, Any]) -> str:
    """Return what came of an annotation as a table, an attribute per row, and lines below it."""
    about = manifest["annotation"]
    table = Table("agreement of", "n", "percent", "kappa", box=None, pad_edge=False)
    for found in about["agreement"]:
        table.add_row(" and ".join(found["between"]), *_figures(found["all"]))
        for name, one in found["attributes"].items():
            table.add_row(f"  {name}", *_figures(one))
    faces = ", ".join(f"{split} {counts['faces']}" for split, counts in manifest["splits"].items())
    kinds = [f"{kind} {count}" for kind, count in about["refused"].items()]
    spent = sum(used["usd"] for used in about["usage"].values())
    parts = [f"annotated: {faces}", *kinds, *([f"{spent:.4f} USD"] if spent else [])]
    return rendered(*([table] if about["agreement"] else []), Text("; ".join(parts)))


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    values = (found["n_known"], found["percent_known"], found["kappa_known"])
    return tuple("-" if value is None else f"{value:g}" for value in values)
