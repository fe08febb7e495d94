"""Strict configuration: typed sections, a YAML reader without YAML 1.1's traps, overrides, and the experiment hash."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from asmil.errors import ConfigError

__all__ = [
    "StrictModel",
    "apply_overrides",
    "content_hash",
    "differences",
    "load_yaml",
    "merge",
    "parse_config",
    "set_path",
    "tagged_sections",
]

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
                problem="aliases (*name) are not supported",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]  # PyYAML has no stub for it
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


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", str(loader.construct_scalar(node)).lower()))


_Loader.add_constructor("tag:asmil,2026:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


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
        raise ConfigError(f"{path}: got {_shown(tree)}; expected a mapping of sections such as task, data, model")
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
    except (yaml.YAMLError, RecursionError, ValueError, LookupError) as error:
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


def set_path(tree: Mapping[str, Any], path: str, value: Any, *, tagged: Collection[str] = ()) -> dict[str, Any]:
    """A copy of `tree` in which the dotted `path` holds `value`; missing sections on the way are made.

    A value that is a mapping is merged into the mapping it meets, its own keys taken literally. A key that itself
    contains dots, such as those of `search.params`, is found by its full name.

    Args:
        tree: Plain data.
        path: Dotted path.
        value: What to put there.
        tagged: Paths of sections whose keys depend on their `kind`; giving them another kind drops their other keys.

    Returns:
        A new tree; `tree` is not changed.

    Example:
        >>> set_path({"a": {"b": 1, "c": 2}}, "a.b", 5)
        {'a': {'b': 5, 'c': 2}}
        >>> set_path({"a": {"kind": "x", "c": 2}}, "a.kind", "y", tagged={"a"})
        {'a': {'kind': 'y'}}
    """
    keys, node = [], tree
    while path:
        key = _first_key(node, path)
        keys.append(key)
        path = path[len(key) + 1 :]
        child = node.get(key)
        node = child if isinstance(child, Mapping) else {}
    for key in reversed(keys):
        value = {key: value}
    return _merged(tree, value, tagged, "")


def merge(tree: Mapping[str, Any], overrides: Mapping[str, Any], *, tagged: Collection[str] = ()) -> dict[str, Any]:
    """`tree` with every (possibly dotted) key of `overrides` set in turn, as by `set_path`."""
    result = dict(tree)
    for path, value in overrides.items():
        result = set_path(result, path, value, tagged=tagged)
    return result


def _first_key(node: Mapping[str, Any], path: str) -> str:
    """The longest key of `node` that the dotted path begins with, or the path up to its first dot."""
    parts = path.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((key for key in prefixes if key in node), parts[0])


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any], tagged: Collection[str], path: str) -> dict[str, Any]:
    if path in tagged and changes.get("kind", tree.get("kind")) != tree.get("kind"):
        tree = {}
    result = dict(tree)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping):
            value = _merged(old if isinstance(old, Mapping) else {}, value, tagged, f"{path}.{key}".lstrip("."))
        result[key] = value
    return result


def apply_overrides(
    tree: Mapping[str, Any], assignments: Sequence[str], *, tagged: Collection[str] = ()
) -> dict[str, Any]:
    """Apply `--set path=value` assignments in order; values are read as YAML.

    Args:
        tree: The configuration so far.
        assignments: Texts such as `model.aggregator.tokens=4`.
        tagged: As for `set_path`.

    Returns:
        A new tree.

    Raises:
        ConfigError: An assignment without `=` or with a value that is not YAML.
    """
    result = dict(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            raise ConfigError(f"--set {assignment}: expected path=value, for example model.aggregator.tokens=4")
        source = f"--set {assignment}"
        result = set_path(result, path, _fill_environment(_parse_yaml(text, source), source), tagged=tagged)
    return result


def tagged_sections(model: type[BaseModel], path: str = "") -> frozenset[str]:
    """Dotted paths of the sections of a model that are one of several kinds, told apart by a key such as `kind`."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}".lstrip(".")
        if field.discriminator is not None:
            found.add(inner)
        for section in _models_in(field.annotation):
            found |= tagged_sections(section, inner)
    return frozenset(found)


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
        found: dict[tuple[str, str], list[str]] = {}
        for problem in error.errors(include_url=False):
            path, received, allowed = _describe(model, tree, problem, source)
            found.setdefault((path, received), []).append(allowed)
    lines = [
        f"{source}: {f'{path}: ' if path else ''}{received}{' or '.join(dict.fromkeys(allowed))}"
        for (path, received), allowed in found.items()
    ]
    raise ConfigError("\n       ".join(lines))


def _describe(model: type[BaseModel], tree: Mapping[str, Any], problem: Any, source: str) -> tuple[str, str, str]:
    """Dotted path, what was received, and what is allowed. Several of the last may belong to one path (unions)."""
    names, sections = _locate(model, tree, problem)
    path = ".".join(names)
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return path, f"unknown key{_line_of(names, source)}; ", _nearest_key(names, sections)
        case "missing":
            return path, "required but missing", ""
        case "union_tag_not_found":
            return f"{path}.kind", "required but missing; one of ", ", ".join(sorted(_kinds(sections)))
        case "union_tag_invalid":
            allowed = context["expected_tags"]
            return f"{path}.kind", f"got {context['tag']!r}; it should be ", allowed + _nearest(context["tag"], allowed)
        case "value_error":
            return path, "", str(context["error"])
        case "model_type":
            return path, f"got {_shown(problem['input'])}; it should be ", "a section (a mapping of keys to values)"
    allowed = problem["msg"].removeprefix("Input should be ")
    near = _nearest(problem["input"], context["expected"]) if problem["type"] == "literal_error" else ""
    return path, f"got {_shown(problem['input'])}; it should be ", allowed + near


def _locate(model: type[BaseModel], tree: Any, problem: Any) -> tuple[list[str], list[type[BaseModel]]]:
    """Where a problem lies: its path in the YAML, and the models that the section around it may be.

    A pydantic location also names the member of a union that was tried; such parts are not keys of the input and are
    left out of the path. At a union itself the models are its members.
    """
    names: list[str] = []
    here, around, node = [model], [model], tree
    for part in problem["loc"]:
        is_key = part in node if isinstance(node, Mapping) else isinstance(node, list | tuple) and isinstance(part, int)
        if not is_key and not (problem["type"] == "missing" and part == problem["loc"][-1]):
            here = [section for section in here if part in {section.__name__, *_kinds([section])}] or here
            continue
        names.append(str(part))
        around = here
        fields = [section.model_fields[part] for section in here if part in section.model_fields]
        here = [found for field in fields for found in _models_in(field.annotation)] or here
        node = node[part] if is_key else None
    return names, here if problem["type"].startswith("union_tag") else around


def _line_of(names: Sequence[str], source: str) -> str:
    """Where in a YAML file a key stands, in brackets; empty if it is not there, because an override brought it."""
    try:
        node, line = yaml.compose(Path(source).read_text(encoding="utf-8"), Loader=_Loader), ""
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    for name in names:
        inside = node.value if isinstance(node, yaml.MappingNode) else []
        key, node = next(((key, value) for key, value in inside if key.value == name), (None, None))
        line = f" (line {key.start_mark.line + 1})" if key is not None else ""
    return line


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models named anywhere in a type: itself, or the members of a union, the values of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for item in get_args(annotation) for found in _models_in(item)]


def _kinds(sections: Sequence[type[BaseModel]]) -> set[str]:
    fields = [section.model_fields["kind"] for section in sections if "kind" in section.model_fields]
    return {str(kind) for field in fields for kind in get_args(field.annotation)}


def _nearest_key(names: Sequence[str], sections: Sequence[type[BaseModel]]) -> str:
    known = {name for section in sections for name in section.model_fields}
    near = difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
    return f"did you mean {'.'.join([*names[:-1], *near])!r}?" if near else f"known keys: {', '.join(sorted(known))}"


def _nearest(value: Any, allowed: str) -> str:
    near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", allowed), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def content_hash(value: Any) -> str:
    """A short hash of plain data that does not depend on the order of keys.

    Example:
        >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two trees of plain data, one text per dotted path.

    Example:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
        ['a.c: 2 -> 3', 'd: None -> 4']
    """
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return [f"{path}: {before.get(path)!r} -> {after.get(path)!r}" for path in paths]


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield path, list(node) if isinstance(node, tuple) else node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{path}.{key}".lstrip("."))
