"""Strict configuration: typed sections, a YAML reader without YAML 1.1's traps, overrides, and the experiment hash."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from asmil.errors import ConfigError

__all__ = ["StrictModel", "apply_overrides", "content_hash", "load_yaml", "merge", "parse_config", "set_path"]

MAX_YAML_BYTES = 1_000_000


class StrictModel(BaseModel):
    """Base of every configuration section: unknown keys are errors and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`1e-4` is a number, `on` is text, `012` is 12), no duplicate keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.MarkedYAMLError(problem=f"{key!r} cannot be a key", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key!r}", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:asmil,2026:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:asmil,2026:int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(loader.construct_scalar(node)))


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan").replace(".NaN", "nan"))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping as YAML 1.2 and fill in `${NAME:default}` from the environment.

    Args:
        path: The file.

    Returns:
        The nested mapping.

    Raises:
        ConfigError: The file is missing, too large, not YAML, not a mapping, or names an unset variable.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= MAX_YAML_BYTES else ""
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    if size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {size} bytes; a configuration may have at most {MAX_YAML_BYTES}")
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections such as task, data, model; got {type(tree).__name__}")
    filled = _fill_environment(tree, str(path))
    assert isinstance(filled, dict)
    return filled


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML ({error})") from None


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")


def _fill_environment(value: Any, source: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_environment(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_environment(item, source) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name, default)
        if found is None:
            raise ConfigError(f"{source}: ${{{name}}} is not set in the environment and has no default")
        return found

    return _VARIABLE.sub(fill, value)


def set_path(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `tree` in which the dotted `path` holds `value`; missing sections on the way are made.

    A value that is a mapping is merged into the mapping it meets.

    Example:
        >>> set_path({"a": {"b": 1, "c": 2}}, "a.b", 5)
        {'a': {'b': 5, 'c': 2}}
    """
    head, _, rest = path.partition(".")
    child = tree.get(head)
    if rest:
        value = set_path(child if isinstance(child, Mapping) else {}, rest, value)
    elif isinstance(value, Mapping) and isinstance(child, Mapping) and value.get("kind", child.get("kind")) == child.get("kind"):
        value = merge(child, value)
    return {**tree, head: value}


def merge(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with every (possibly dotted) key of `overrides` set; mappings merge, anything else is replaced."""
    result = dict(tree)
    for path, value in overrides.items():
        result = set_path(result, path, value)
    return result


def apply_overrides(tree: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `--set path=value` assignments in order; values are read as YAML.

    Args:
        tree: The configuration so far.
        assignments: Texts such as `model.aggregator.tokens=4`.

    Returns:
        A new tree.

    Raises:
        ConfigError: An assignment without `=` or with a value that is not YAML.
    """
    result = dict(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment}: expected path=value, for example model.aggregator.tokens=4")
        value = _fill_environment(_parse_yaml(text, f"--set {assignment}"), f"--set {assignment}")
        result = set_path(result, path.strip(), value)
    return result


def parse_config(model: type[Model], tree: Mapping[str, Any], source: str) -> Model:
    """Validate a tree against a model.

    Args:
        model: The pydantic model of the section.
        tree: Plain data.
        source: What to name in errors: the YAML file.

    Returns:
        The validated section.

    Raises:
        ConfigError: One line per problem: file, dotted path, what was received, what is allowed, the nearest key.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(model, problem, source) for problem in error.errors(include_url=False)]
        raise ConfigError("\n       ".join(dict.fromkeys(lines))) from None


def _describe(model: type[BaseModel], problem: Any, source: str) -> str:
    location = [part for part in problem["loc"] if not str(part).startswith("function-")]
    names, known = _walk(model, location)
    path = ".".join(names)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{source}: {path}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{source}: {path}: required but missing"
    return f"{source}: {path}: got {problem['input']!r}; {problem['msg'].removeprefix('Value error, ')}"


def _walk(model: type[BaseModel], location: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The YAML path of a pydantic location (union tags removed) and the keys its last section knows."""
    names: list[str] = []
    models: list[type[BaseModel]] = [model]
    for part in location:
        known = {name for candidate in models for name in candidate.model_fields}
        if isinstance(part, str) and part not in known and _is_tag(models, part):
            models = [m for m in models if _tag_of(m) == part] or models
            continue
        names.append(str(part))
        if part in known:
            annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [found for annotation in annotations for found in _models_in(annotation)] or models
    parents = models if not names or names[-1] not in {n for m in models for n in m.model_fields} else models
    return names, [name for candidate in parents for name in candidate.model_fields]


def _tag_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if values else model.__name__


def _is_tag(models: Sequence[type[BaseModel]], part: str) -> bool:
    return any(part in (_tag_of(m), m.__name__) for m in models)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, dict, list, tuple) or get_args(annotation):
        return [found for item in get_args(annotation) for found in _models_in(item)]
    return []


def content_hash(value: Any) -> str:
    """A short hash of plain data that does not depend on the order of keys.

    Example:
        >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
