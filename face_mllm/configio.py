"""YAML files to typed settings: shipped names, dotted overrides, errors that name the key.

Every verb reads its configuration through :func:`load_yaml_model`, so a misspelt key or a
wrong type is one line with the file, the key and what would be right.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from face_mllm.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

PACKAGE = Path(__file__).resolve().parent
# inside a wheel the configs are package data; in a checkout they stand beside the package
CONFIG_ROOTS = (PACKAGE / "stage_configs", PACKAGE.parent / "stage_configs")
LAUNCH_CONFIGS = "accelerate"  # beside the stages' configs: found by name, but no stages

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "path_type": "a path",
}


class Strict(BaseModel):
    """Base of settings that are exactly their YAML: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, which plain YAML silently drops."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the parent class says what is wrong with it
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def shipped_configs() -> list[str]:
    """Names of the stage configs that come with the package, such as ``embedded/face_clip``."""
    names = {
        path.relative_to(root).with_suffix("").as_posix()
        for root in CONFIG_ROOTS
        for path in root.rglob("*.yaml")
        if path.parent.name != LAUNCH_CONFIGS
    }
    return sorted(names)


def find_config(path_or_name: str | Path) -> Path:
    """Return the file of a config given by path or by shipped name.

    Args:
        path_or_name: an existing file, or a shipped one as ``stage_configs/embedded/x.yaml``,
            ``embedded/x.yaml`` or ``embedded/x``.

    Raises:
        UserError: when there is no such file, naming the nearest shipped config.
    """
    given = Path(path_or_name).expanduser()
    if given.is_file():
        return given
    name = str(path_or_name).removeprefix("./").removeprefix("stage_configs/")
    for root in CONFIG_ROOTS:
        for candidate in (root / name, root / f"{name}.yaml"):
            if candidate.is_file() and candidate.resolve().is_relative_to(root.resolve()):
                return candidate
    shipped = shipped_configs()
    near = difflib.get_close_matches(name.removesuffix(".yaml"), shipped, n=1, cutoff=0.5)
    hint = f"did you mean stage_configs/{near[0]}.yaml?" if near else "check the path"
    raise UserError(f"{path_or_name}: no such config file", hint)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file of keys and values.

    Raises:
        UserError: not readable, not UTF-8, not YAML (with the line) or not keys with values.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text", "save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "check the path") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"{path}{_where(error)}: not valid YAML ({_problem(error)})", "mend that line"
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(
            f"{path}: expected `key: value` lines, found {type(data).__name__}",
            "give a YAML file of settings",
        )
    return data


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``data`` with ``key.sub=value`` applied; values are YAML scalars or flow lists.

    ``sources.0.take=first:100`` reaches into lists by position.

    Raises:
        UserError: an override without ``=``, with broken YAML, or through something without keys.
    """
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign or not all(part.strip() for part in dotted.split(".")):
            raise UserError(f"override {override!r}", "write it as key=value or key.sub=value")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: {_problem(error)}", "quote it") from error
        data = _replace(data, [part.strip() for part in dotted.split(".")], value, override)
    return data


def _replace(node: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return value
    head, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise UserError(
                f"override {override!r}: {head} is not a place in that list",
                f"give 0 to {len(node) - 1}" if node else "the list is empty",
            )
        place = int(head)
        changed = _replace(node[place], rest, value, override)
        return [*node[:place], changed, *node[place + 1 :]]
    if node is not None and not isinstance(node, dict):
        raise UserError(
            f"override {override!r}: the config has a plain value before {head}",
            f"leave out .{head} and what follows it",
        )
    return {**(node or {}), head: _replace((node or {}).get(head), rest, value, override)}


def load_yaml_model(
    path_or_name: str | Path, cls: type[Model], overrides: Iterable[str] = ()
) -> Model:
    """Read a YAML file into a pydantic model after applying the overrides.

    Args:
        path_or_name: as :func:`find_config`.
        cls: a model with ``extra="forbid"``.
        overrides: ``key.sub=value`` strings from the command line.

    Raises:
        UserError: naming the file, the key, and the nearest valid key or the expected type.
    """
    path = find_config(path_or_name)
    return validate_model(apply_overrides(read_yaml(path), overrides), cls, str(path))


def validate_model(data: Mapping[str, Any], cls: type[Model], name: str) -> Model:
    """Turn plain data into ``cls``; ``name`` is the file the errors speak of."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        detail = (unknown or details)[0]  # the misspelt key explains the missing one
        raise _explain(detail, cls, name) from error


def _explain(detail: Any, cls: type[BaseModel], name: str) -> UserError:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location) or "the file"
    if detail["type"] == "extra_forbidden":
        return _unknown_key(location, cls, name)
    if detail["type"] == "missing":
        return UserError(f"{name}: key {key!r} is missing", f"add `{location[-1]}: ...`")
    found = repr(detail["input"])
    found = found if len(found) <= 60 else found[:57] + "..."
    expected = _EXPECTED.get(detail["type"], detail["msg"].removeprefix("Input should be "))
    if detail["type"] == "value_error":  # a validator of ours: its words say it all
        return UserError(f"{name}: {key}: {detail['msg'].removeprefix('Value error, ')}")
    return UserError(f"{name}: key {key!r} is {found}", f"expected {expected}")


def _unknown_key(location: list[str], cls: type[BaseModel], name: str) -> UserError:
    valid = _keys_at(cls, location[:-1])
    near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid) or 'none'}"
    return UserError(f"{name}: unknown key {'.'.join(location)!r}", remedy)


def _keys_at(cls: type[BaseModel], location: list[str]) -> list[str]:
    """Valid keys at a place; list positions and union tags in the location are stepped over."""
    models = [cls]
    for part in location:
        deeper = [
            found
            for model in models
            for field_name, field in model.model_fields.items()
            if part in (field_name, field.alias)
            for found in _models_in(field.annotation)
        ]
        tagged = [model for model in models if model.__name__ == part]
        models = deeper or tagged or models
    return sorted({field.alias or key for m in models for key, field in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for arg in typing.get_args(annotation) for found in _models_in(arg)]
