"""Recipes: which sources, how much of each, which questions, what is held out.

Example::

    seed: 0
    holdout_attributes: [smiling]
    sources:
      - source: table
        root: faces.parquet
        columns: {id: id, image: image, split: split, expression: expression}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_pipeline.faces.policy import NO_FACES, FacePolicy, Faces
from data_pipeline.labels.leaks import checked_held_out
from data_pipeline.protocols import Protocol
from data_pipeline.questions.question_set import Grids, QuestionSet, shipped_templates
from data_pipeline.reencode import Reencode
from data_pipeline.sources import Source, SourceOptions, get_source
from face_mllm.configio import find_config, load_yaml_model, shipped_configs, validate_model
from face_mllm.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
_TAKE = re.compile(r"all|first:[1-9]\d*|random:(?:\d+(?:\.\d+)?)%")


class SourceEntry(BaseModel):
    """One source of a recipe; keys beyond these are the source's own options.

    Args:
        source: registered name (``synth``, ``records``, ``table``, ``folder``, ...).
        root: file or folder, absolute or relative to the recipe.
        protocol: named split and label rules; the source's documented default when absent.
        tasks: ask only these (``expression``, ``action_unit``, ...; ``vqa`` are the questions
            a source brings along).
        take: ``all``, ``first:N`` (of each split, in source order) or ``random:P%``.
        weight: factor on the loss weight of this source's training questions.
        faces: overrides the recipe's ``faces`` for this source.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str
    root: Path
    protocol: str | None = None
    tasks: tuple[str, ...] | None = None
    take: str = "all"
    weight: float = Field(default=1.0, gt=0)
    faces: Faces | None = None

    @field_validator("take")
    @classmethod
    def _known_take(cls, value: str) -> str:
        if not _TAKE.fullmatch(value):
            raise ValueError(f"take is {value!r}: write all, first:N or random:P%")
        return value

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        known = sorted({key.split("/")[0] for key in shipped_templates()} | {"vqa"})
        for task in value or ():
            if task not in known:
                raise ValueError(f"no task {task!r}; tasks are {', '.join(known)}")
        return value


class Reencoded(BaseModel):
    """``images: {reencode: {side: 224, quality: 90}}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reencode: Reencode


class Recipe(BaseModel):
    """A build recipe.

    Args:
        seed: fixes wordings, ``take: random`` and the choice of questions.
        sources: what to read, in order.
        holdout_attributes: attributes no question or caption may mention (zero-shot test).
        questions: shipped question set (``compact``, ``full``) or a YAML file of one's own.
        expression_classes: overrides the set's classes; a protocol that fixes them wins.
        grids: overrides the set's numeric grids.
        soft_labels: overrides whether annotators' votes are trained on; likewise.
        ask_unknown: overrides what is asked where it is not labelled ("cannot be told").
        faces: ``none``: pictures are used as they are (already cropped to the face);
            ``detect``, or a mapping of :class:`data_pipeline.faces.FacePolicy`: faces are found
            in photographs and cut out.
        images: ``embed`` bytes into the dataset, ``link`` files by absolute path, or embed them
            saved anew: ``{reencode: {side: 224, quality: 90}}``.
        min_side: smaller pictures (px) are dropped.
        max_questions_per_face: most training questions a face keeps; rare answers are
            likelier to be kept. None keeps all.
        rows_per_shard: faces per parquet file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    holdout_attributes: tuple[str, ...] = ()
    questions: str = "compact"
    expression_classes: Literal["basic7", "canonical8"] | None = None
    grids: Grids | None = None
    soft_labels: bool | None = None
    ask_unknown: tuple[str, ...] | None = None
    faces: Faces = NO_FACES
    images: Literal["embed", "link"] | Reencoded = "embed"
    min_side: int = Field(default=16, ge=1)
    max_questions_per_face: int | None = Field(default=None, ge=1)
    rows_per_shard: int = Field(default=2000, ge=1)

    @model_validator(mode="after")
    def _crops_are_embedded(self) -> Recipe:
        policies = [self.faces, *(entry.faces for entry in self.sources if entry.faces)]
        if self.images == "link" and any(policy.mode == "detect" for policy in policies):
            raise ValueError("`faces: detect` makes new pictures: write `images: embed`")
        return self

    @field_validator("holdout_attributes")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_held_out(value)


@dataclass(frozen=True)
class Ready:
    """One source entry with everything looked up: reader, options, root, protocol, crop policy.

    Args:
        as_built: source name -> protocol, where the root is a built dataset itself.
    """

    entry: SourceEntry
    source: Source
    options: SourceOptions
    root: Path
    protocol: Protocol
    faces: FacePolicy
    as_built: Mapping[str, Protocol] = field(default_factory=dict)

    def protocol_of(self, name: str) -> Protocol:
        """Return what the records of a source name were split and labelled by."""
        return self.as_built.get(name, self.protocol)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its question set and sources ready to read."""

    recipe: Recipe
    question_set: QuestionSet
    sources: tuple[Ready, ...]


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> LoadedRecipe:
    """Read a recipe file or a shipped one (``embedded``) and check all it names.

    Args:
        path_or_name: YAML file, or the name of one in ``data_pipeline/recipes`` (``embedded``) or
            among the stage configs (``experts/data/rafdb``).
        overrides: ``key=value`` strings, such as ``sources.0.root=faces``.

    Raises:
        UserError: unknown key, source, option, task or question set, or a root that is missing.
    """
    path = _find(path_or_name)
    recipe = load_yaml_model(path, Recipe, overrides)
    ready = tuple(_ready(recipe, path, number) for number in range(len(recipe.sources)))
    return LoadedRecipe(recipe, _question_set(recipe, path), ready)


def _find(path_or_name: str | Path) -> Path:
    if Path(path_or_name).is_file():
        return Path(path_or_name)
    shipped = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if str(path_or_name) in shipped:
        return RECIPES / f"{path_or_name}.yaml"
    beside = [name for name in shipped_configs() if "/data/" in name]  # what stages are made of
    named = str(path_or_name).removeprefix("stage_configs/").removesuffix(".yaml")
    if named in beside:
        return find_config(named)
    known = ", ".join([*shipped, *beside])
    raise UserError(f"{path_or_name}: no such recipe", f"give a YAML file or one of {known}")


def _question_set(recipe: Recipe, path: Path) -> QuestionSet:
    own = path.parent / recipe.questions
    name = own if own.is_file() else recipe.questions
    grids = None if recipe.grids is None else recipe.grids.model_dump()
    return QuestionSet.load(
        name,
        expression_classes=recipe.expression_classes,
        grids=grids,
        soft_labels=recipe.soft_labels,
        ask_unknown=recipe.ask_unknown,
    )


def _ready(recipe: Recipe, path: Path, number: int) -> Ready:
    entry = recipe.sources[number]
    where = f"{path}: sources.{number}"
    source = get_source(entry.source)
    extra = dict(entry.model_extra or {})
    _check_keys(extra, source, where)
    options = validate_model(extra, source.options, where)
    protocol = source.protocol(entry.protocol, options)
    root = _root(entry.root, path, where)
    as_built = source.as_built(root, options) if source.as_built else {}
    faces = entry.faces or recipe.faces
    return Ready(entry, source, options, root, protocol, faces, as_built)


def _check_keys(extra: dict[str, Any], source: Source, where: str) -> None:
    known = [*SourceEntry.model_fields, *source.options.model_fields]
    for key in extra:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(known)}"
            raise UserError(f"{where}: source {source.name!r} has no key {key!r}", hint)


def _root(root: Path, path: Path, where: str) -> Path:
    """Relative roots start from the recipe's folder, else from the working one."""
    beside = path.parent / root.expanduser()
    for candidate in (beside, root.expanduser()):
        if candidate.exists():
            return candidate
    raise UserError(f"{where}: root {root} does not exist", f"looked for {beside.resolve()}")
