"""Question sets: which forms are asked in which words, read from YAML and checked at once."""

from __future__ import annotations

import difflib
import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_pipeline.labels.expressions import CLASS_SETS
from data_pipeline.questions.forms import AGE_GRID, FORMS, POSE_GRID, Context, Grid
from data_pipeline.questions.unknown import canonical_name
from face_mllm.configio import read_yaml, validate_model
from face_mllm.errors import UserError

HERE = Path(__file__).parent
LATER = ("ask_unknown", "no_per_yes", "soft_labels")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wording(_Strict):
    """The words of one form.

    Args:
        wordings: questions, the canonical one first.
        answers: how the answer is put (``{answer}`` alone for closed forms).
        balance: weigh answers so that each has the same total weight per name.
        weight: factor on the loss of this form.
    """

    wordings: tuple[str, ...] = Field(min_length=1)
    answers: tuple[str, ...] = Field(default=("{answer}",), min_length=1)
    balance: bool = False
    weight: float = Field(default=1.0, gt=0)


class _TemplateFile(_Strict):
    task: str
    forms: dict[str, Wording]


class Grids(_Strict):
    """Numeric answer grids per task."""

    age: Grid = AGE_GRID
    head_pose: Grid = POSE_GRID


class QuestionSet(_Strict):
    """Forms, wordings and answer spaces used together; ``manifest.json`` stores it whole.

    Args:
        forms: form keys such as ``action_unit/yes_no``, in asking order.
        canonical_share: share of training questions in the canonical wording.
        expression_classes: the class set of expression questions, where the protocol of the
            source does not fix it.
        active_threshold: smallest AU intensity that counts as active, likewise.
        exact_numbers: answer numbers to the unit instead of to the grid.
        ask_unknown: names (``AU12``, ``eyeglasses``, ``yaw``, ``age``) that are asked where they
            are not labelled, with the answer "cannot be told"; none by default.
        no_per_yes: of a face's yes/no questions of one form, keep at most this many answered "no"
            for each "yes", and one where there is no "yes"; None keeps all.
        soft_labels: train on annotators' votes where there are any: the expression is asked once
            and answered with every word that has votes, each weighted by its share. Likewise.
        captions: length of captions written from labels (``short``: within 30 LLM tokens).
        grids: numeric choices for scoring and rounding.
        templates: wordings by form key; those missing come from the shipped files.
    """

    forms: tuple[str, ...] = Field(min_length=1)
    canonical_share: float = Field(default=0.5, ge=0, le=1)
    expression_classes: Literal["basic7", "canonical8"] = "basic7"
    active_threshold: float = Field(default=2.0, gt=0, le=5)
    exact_numbers: bool = False
    ask_unknown: tuple[str, ...] = ()
    no_per_yes: float | None = Field(default=None, gt=0)
    soft_labels: bool = False
    captions: Literal["short", "long"] = "short"
    grids: Grids = Grids()
    templates: dict[str, Wording] = {}

    @classmethod
    def load(cls, name_or_path: str | Path, **changes: Any) -> QuestionSet:
        """Read a shipped set (``compact``, ``full``) or a YAML file of one's own.

        Args:
            name_or_path: shipped name, or path of a file with the keys of this class.
            changes: settings that replace those of the file; None leaves the file's.

        Raises:
            UserError: no such set, unknown key or form, or a wording with an unknown
                placeholder; the message names file and key.
        """
        path = _find(name_or_path)
        data = {**read_yaml(path), **{k: v for k, v in changes.items() if v is not None}}
        chosen = validate_model(data, cls, str(path))
        return chosen._completed(str(path))

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> QuestionSet:
        """Return the set a built dataset was rendered with."""
        try:
            stored = manifest["question_set"]
        except KeyError as error:
            raise UserError(
                "manifest.json holds no question_set", "build the data again"
            ) from error
        return validate_model(stored, cls, "manifest.json: question_set")

    @field_validator("ask_unknown")
    @classmethod
    def _canonical(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(map(canonical_name, names)))
        except UserError as error:
            raise ValueError(str(error)) from error

    def under(self, targets: Mapping[str, Any]) -> QuestionSet:
        """Return the set with the settings a protocol fixes in place of its own.

        Args:
            targets: some of ``active_threshold``, ``expression_classes`` and ``soft_labels``.
        """
        return QuestionSet(**{**self.model_dump(), **targets}) if targets else self

    def _completed(self, name: str) -> QuestionSet:
        for key in (*self.forms, *self.templates):
            _check_form(key, name)
        for key, wording in self.templates.items():
            _check_placeholders(key, wording, name)
        words = {key: self.templates.get(key) or shipped_templates()[key] for key in self.forms}
        return self.model_copy(update={"templates": words})

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of all settings and wordings."""
        settings = self.model_dump(mode="json")
        for name in LATER:  # unset, they leave older sets their hash
            if not settings[name]:
                del settings[name]
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The expression words of the class set."""
        return CLASS_SETS[self.expression_classes]

    @cached_property
    def _context(self) -> Context:
        return Context(
            classes=self.classes,
            threshold=self.active_threshold,
            exact=self.exact_numbers,
            age=self.grids.age,
            pose=self.grids.head_pose,
            unknown=self.ask_unknown,
            soft=self.soft_labels,
        )

    def context(self, key: str = "", caption: str = "", held_out: tuple[str, ...] = ()) -> Context:
        """Return the settings the forms need; without ``key`` options keep their order."""
        return replace(self._context, key=key, caption=caption, held_out=held_out)


@lru_cache(maxsize=16)
def load_set(name: str) -> QuestionSet:
    """Return :meth:`QuestionSet.load` of a name, read once."""
    return QuestionSet.load(name)


def _find(name_or_path: str | Path) -> Path:
    shipped = HERE / "sets" / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    names = sorted(path.stem for path in (HERE / "sets").glob("*.yaml"))
    raise UserError(
        f"{name_or_path}: no such question set", f"use {', '.join(names)} or a YAML file"
    )


@lru_cache(maxsize=1)
def shipped_templates() -> dict[str, Wording]:
    """Read every file of ``templates/``: form key -> wordings."""
    found: dict[str, Wording] = {}
    for path in sorted((HERE / "templates").glob("*.yaml")):
        found.update(read_templates(path))
    return found


def read_templates(path: Path) -> dict[str, Wording]:
    """Read one template file: ``task`` and its ``forms``.

    Raises:
        UserError: naming the file and the form with an unknown name or placeholder.
    """
    content = validate_model(read_yaml(path), _TemplateFile, str(path))
    words = {f"{content.task}/{form}": wording for form, wording in content.forms.items()}
    for key, wording in words.items():
        _check_form(key, str(path))
        _check_placeholders(key, wording, str(path))
    return words


def _check_form(key: str, name: str) -> None:
    if key not in FORMS:
        near = difflib.get_close_matches(key, FORMS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known forms: {', '.join(FORMS)}"
        raise UserError(f"{name}: unknown question form {key!r}", hint)


def _check_placeholders(key: str, wording: Wording, name: str) -> None:
    allowed = FORMS[key].placeholders
    for texts, known in ((wording.wordings, allowed), (wording.answers, {"answer"})):
        for text in texts:
            unknown = _placeholders(text, f"{name}: {key}") - known
            if unknown:
                can = ", ".join(f"{{{word}}}" for word in sorted(known)) or "none"
                raise UserError(
                    f"{name}: {key}: unknown placeholder {{{min(unknown)}}} in {text!r}",
                    f"placeholders here: {can}",
                )


def _placeholders(text: str, where: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(f"{where}: {text!r}: {error}", "write a literal brace twice") from error
