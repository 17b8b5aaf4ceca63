"""``manifest.json`` and the dataset card: what was read, kept, dropped, asked and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from rich.table import Table
from rich.text import Text

from data_pipeline.faces.policy import NO_FACES, FacePolicy
from data_pipeline.labels.attributes import attribute
from data_pipeline.labels.leaks import mentions
from data_pipeline.protocols import TARGETS
from data_pipeline.questions import QuestionSet
from data_pipeline.questions.balance import AnswerWeights
from data_pipeline.recipe import LoadedRecipe, Ready
from data_pipeline.tables import rendered
from data_pipeline.tally import Account, LabelTally, LeakCheck


def make_manifest(
    loaded: LoadedRecipe,
    accounts: Sequence[Account],
    tallies: Mapping[str, LabelTally],
    leaks: LeakCheck,
    weights: AnswerWeights,
) -> dict[str, Any]:
    """Return the manifest of a finished build; it holds no time and no machine name."""
    recipe = loaded.recipe
    return {
        "format": 1,
        "version": version("face-mllm"),
        "seed": recipe.seed,
        "questions": recipe.questions,
        "question_set": loaded.question_set.model_dump(mode="json"),
        "template_hash": loaded.question_set.hash,
        "holdout_attributes": list(recipe.holdout_attributes),
        "leak_check": leaks.as_dict() | {"unasked": _unasked(tallies, leaks.held_out)},
        "subject_leaks": 0,
        "faces": crop_policy(loaded, accounts).as_manifest(),
        "images": recipe.model_dump(mode="json")["images"],
        "max_questions_per_face": recipe.max_questions_per_face,
        "sources": [
            _source(ready, account) | {"train_loss_share": _share(account, accounts)}
            for ready, account in zip(loaded.sources, accounts, strict=True)
        ],
        "splits": {split: tally.as_dict() for split, tally in tallies.items() if tally.faces},
        "answer_weights": _nested(weights),
    }


def _source(ready: Ready, account: Account) -> dict[str, Any]:
    entry = ready.entry
    return {
        "source": entry.source,
        "root": str(entry.root),
        "fingerprint": account.fingerprint,
        "protocol": ready.protocol.name,
        "protocols": {
            name: {"name": (by := ready.protocol_of(name)).name, **by.targets}
            for name in sorted(account.names)
        },
        "options": ready.options.model_dump(mode="json", exclude_defaults=True),
        "licences": dict(sorted(account.licences.items())),
        "tasks": list(entry.tasks) if entry.tasks is not None else None,
        "take": entry.take,
        "weight": entry.weight,
        "rows_read": account.read,
        "rows_not_taken": account.not_taken,
        "kept": dict(sorted(account.kept.items())),
        "faces": {
            "policies": dict(sorted(account.policies.items())),
            "found_by": dict(sorted(account.found_by.items())),
            "not_cut_out": account.not_cut_out,
        },
        "dropped": account.drops.as_dict(),
        "train_questions": account.train_questions,
    }


def _share(account: Account, accounts: Sequence[Account]) -> float:
    """What part of the training loss the questions of a source are."""
    whole = sum(one.train_weight for one in accounts)
    return round(account.train_weight / whole, 4) if whole else 0.0


def protocols_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return source, as the records name it -> the protocol it was read by."""
    named: dict[str, set[str]] = {}
    for entry in manifest.get("sources", ()):
        # older manifests name the reader only
        known = entry.get("protocols") or {entry["source"]: {"name": entry["protocol"]}}
        for name, settings in known.items():
            named.setdefault(name, set()).add(settings["name"])
    return {name: " + ".join(sorted(each)) for name, each in named.items()}


def question_sets(manifest: Mapping[str, Any]) -> dict[str, QuestionSet]:
    """Return source, as the records name it -> its questions, with the targets of its protocol."""
    asked = QuestionSet.from_manifest(manifest)
    return {
        name: asked.under({key: settings[key] for key in TARGETS if key in settings})
        for entry in manifest.get("sources", ())
        for name, settings in entry.get("protocols", {}).items()
    }


def crop_policy(loaded: LoadedRecipe, accounts: Sequence[Account]) -> FacePolicy:
    """Return the policy by which most faces were cropped: what a new photograph needs.

    Pictures that came cropped say nothing about photographs and do not count.
    """
    used = sum((account.policies for account in accounts), Counter[str]())
    if not used:
        return NO_FACES
    name = max(used, key=lambda each: (used[each], each))
    stated = [ready.faces for ready in loaded.sources if ready.faces.name == name]
    return stated[0] if stated else FacePolicy.from_name(name)


def _unasked(tallies: Mapping[str, LabelTally], held_out: tuple[str, ...]) -> list[str]:
    """Attributes that are not held out, yet cannot be worded without one that is."""
    seen = {name for tally in tallies.values() for key, name in tally.words if key == "attributes"}
    rows = [attribute(name) for name in sorted(seen - set(held_out))]
    return [
        row.name
        for row in rows
        if mentions(row.question, held_out) and mentions(row.phrase, held_out)
    ]


def _nested(weights: AnswerWeights) -> dict[str, dict[str, dict[str, float]]]:
    nested: dict[str, dict[str, dict[str, float]]] = {}
    for (task, name), answers in weights.items():
        rounded = {answer: round(value, 6) for answer, value in sorted(answers.items())}
        nested.setdefault(task, {})[name] = rounded
    return nested


CARD = """---
pretty_name: {name}
task_categories: [visual-question-answering]
tags: [face, face-mllm]
configs:
- config_name: default
  data_files:
{files}
---
# {name}

Question-answer data about faces, built by face-mllm {version} (seed {seed}, question set
`{questions}`, templates {template_hash}). One row is one face: image, labels, questions with
answers, choices and loss weights. `manifest.json` accounts for every row read and every row left
out.

```python
from datasets import load_dataset
data = load_dataset("parquet", data_dir="{name}")
```

## Splits
| split | faces | people | questions |
|---|---|---|---|
{splits}

No person stands in two splits.

## Sources
| source | protocol | licence | faces kept | rows dropped |
|---|---|---|---|---|
{sources}

The pictures keep the licences of their sources.

## Faces
{faces}

## Held out
{held_out}
"""


def dataset_card(name: str, manifest: Mapping[str, Any]) -> str:
    """Return the README of a built dataset, in the form the Hugging Face hub reads."""
    held = manifest["holdout_attributes"]
    check = manifest["leak_check"]
    said = f"No question, answer, option or caption ({check['texts_checked']} texts checked) "
    said += f"mentions {', '.join(held)} or a synonym: they measure zero-shot answers."
    return CARD.format(
        name=name,
        files="\n".join(_file_line(split) for split in manifest["splits"]),
        splits="\n".join(_split_line(*pair) for pair in manifest["splits"].items()),
        sources="\n".join(map(_source_line, manifest["sources"])),
        faces=_faces_line(manifest["faces"]),
        held_out=said if held else "No attribute is held out.",
        **{key: manifest[key] for key in ("version", "seed", "questions", "template_hash")},
    )


def _faces_line(faces: Mapping[str, Any] | str) -> str:
    if isinstance(faces, str):
        return "The pictures are used as the sources give them."
    policy = faces["policy"]
    return (
        f"Cut from photographs by crop policy `{policy}`; the column `crop` says how, face by face."
    )


def summary(manifest: Mapping[str, Any]) -> str:
    """Return the realised counts as a table: faces, people, questions per split and source."""
    table = Table("split", "faces", "people", "questions", box=None, pad_edge=False)
    for split, counts in manifest["splits"].items():
        table.add_row(split, *(str(counts[key]) for key in ("faces", "subjects", "questions")))
    return rendered(table, *map(_account_line, manifest["sources"]))


def _account_line(entry: Mapping[str, Any]) -> Text:
    kept = ", ".join(f"{split} {count}" for split, count in entry["kept"].items())
    drops = "; ".join(f"{why}: {of['count']}" for why, of in entry["dropped"].items())
    where = f"{entry['source']} {entry['root']} ({entry['protocol']})"
    taken, whole = entry["rows_read"] - entry["rows_not_taken"], entry["faces"]["not_cut_out"]
    said = [
        f"took {taken} of {entry['rows_read']} rows by {entry['take']}: {kept}",
        f"weight {entry['weight']:g}: {entry['train_questions']} training questions, "
        f"{entry['train_loss_share']:.1%} of the loss",
        *([f"dropped {drops}"] if drops else []),
        *(
            [f"{whole} faces lie in larger pictures: `faces: detect` cuts them out"]
            if whole
            else []
        ),
    ]
    return Text(f"{where}: {'; '.join(said)}")


def _file_line(split: str) -> str:
    public = "validation" if split == "val" else split
    return f"  - split: {public}\n    path: {split}-*.parquet"


def _split_line(split: str, counts: Mapping[str, Any]) -> str:
    return f"| {split} | {counts['faces']} | {counts['subjects']} | {counts['questions']} |"


def _source_line(entry: Mapping[str, Any]) -> str:
    dropped = sum(reason["count"] for reason in entry["dropped"].values())
    licences = ", ".join(entry["licences"])
    kept = sum(entry["kept"].values())
    return f"| {entry['source']} | {entry['protocol']} | {licences} | {kept} | {dropped} |"
