"""The YAML reader, overrides, and the messages about keys and values that are not allowed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from asmil.config import (
    StrictModel,
    apply_overrides,
    content_hash,
    load_yaml,
    merge,
    parse_config,
    set_path,
    tagged_sections,
)
from asmil.errors import ConfigError


class Asmil(StrictModel):
    kind: Literal["asmil"] = "asmil"
    tokens: int = Field(default=8, ge=1)
    hidden: int = 64


class Abmil(StrictModel):
    kind: Literal["abmil"] = "abmil"
    gated: bool = True


class Span(StrictModel):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Span:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


class Protocol(StrictModel):
    kind: Literal["honest", "published"] = "honest"
    folds: int = 5


class Model(StrictModel):
    aggregator: Annotated[Asmil | Abmil, Field(discriminator="kind")] = Asmil()
    width: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    span: Span | None = None


class Root(StrictModel):
    model: Model = Model()
    protocol: Protocol = Protocol()
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    spans: dict[str, Span] = Field(default_factory=dict)
    layers: tuple[Span, ...] = ()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def yaml_value(folder: Path, text: str) -> Any:
    return load_yaml(write(folder / "x.yaml", f"value: {text}\n"))["value"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("012", 12),
        ("-7", -7),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("n", "n"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("'1e-4'", "1e-4"),
        ("[1e-4, off]", [1e-4, "off"]),
        (".inf", float("inf")),
        ("TCGA-2F-A9KO", "TCGA-2F-A9KO"),
        ("1e", "1e"),
    ],
)
def test_scalars_mean_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    found = yaml_value(tmp_path, text)
    assert found == value
    assert type(found) is type(value)


def test_merge_keys_and_aliases_have_no_magic(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path / "x.yaml", "a: {<<: 1}")) == {"a": {"<<": 1}}
    with pytest.raises(ConfigError, match=r"x\.yaml, line 2, column 4: aliases \(\*name\) are not supported"):
        load_yaml(write(tmp_path / "x.yaml", "a: &x 1\nb: *x\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"x\.yaml, line 3, column 1: duplicate key 'a'"),
        ("s:\n  a: 1\n  a: 1\n", r"line 3, column 3: duplicate key 'a'"),
        ("a: [1\n", r"x\.yaml, line 2"),
        ("- 1\n", r"x\.yaml: got \[1\]; expected a mapping of sections"),
        ("", r"x\.yaml: got None; expected a mapping"),
        ("? [a]\n: 1\n", "cannot be a key"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
        ("a: !!bool maybe\n", "not valid YAML"),
        ("a: !!int zwei\n", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: " + "[" * 3000, "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: ${NOT_SET_ANYWHERE}\n", r"\$\{NOT_SET_ANYWHERE\} is not set in the environment and has no default"),
    ],
)
def test_broken_files_are_refused_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_yaml(write(tmp_path / "x.yaml", text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "digits.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"digit\.yaml: no such file; did you mean .*digits\.yaml\?"):
        load_yaml(tmp_path / "digit.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_yaml(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_yaml(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="may have at most"):
        load_yaml(write(tmp_path / "x.yaml", "#" * 1_000_001))


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_mapping_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(ConfigError):
        assert isinstance(load_yaml(path), dict)


def test_the_environment_fills_values_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMIL_TEST_DATA", "/scratch")
    monkeypatch.delenv("ASMIL_TEST_UNSET", raising=False)
    text = 'a: {b: ["${ASMIL_TEST_DATA:data}/x", "${ASMIL_TEST_UNSET:data}/y", "${ASMIL_TEST_UNSET:}"]}\n'
    assert load_yaml(write(tmp_path / "x.yaml", text)) == {"a": {"b": ["/scratch/x", "data/y", ""]}}
    assert apply_overrides({}, ["a=${ASMIL_TEST_DATA}/z"]) == {"a": "/scratch/z"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optimiser": "adam"}, "x.yaml: optimiser: unknown key; did you mean 'optimizer'?"),
        ({"zzz": 1}, "x.yaml: zzz: unknown key; known keys: layers, lr, model, optimizer, protocol, spans"),
        (
            {"model": {"aggregator": {"kind": "asmil", "hiden": 3}}},
            "x.yaml: model.aggregator.hiden: unknown key; did you mean 'model.aggregator.hidden'?",
        ),
        (
            {"model": {"aggregator": {"kind": "abmil", "tokens": 3}}},
            "x.yaml: model.aggregator.tokens: unknown key; known keys: gated, kind",
        ),
        (
            {"model": {"aggregator": {"kind": "asmill"}}},
            "x.yaml: model.aggregator.kind: got 'asmill'; it should be 'asmil', 'abmil' (did you mean 'asmil'?)",
        ),
        (
            {"model": {"aggregator": {"tokens": 3}}},
            "x.yaml: model.aggregator.kind: required but missing; one of abmil, asmil",
        ),
        (
            {"model": {"aggregator": {"kind": "asmil", "tokens": 0}}},
            "x.yaml: model.aggregator.tokens: got 0; it should be greater than or equal to 1",
        ),
        (
            {"model": {"width": "wide"}},
            "x.yaml: model.width: got 'wide'; it should be 'auto' or a valid integer, unable to parse string as an "
            "integer",
        ),
        ({"model": {"span": {"low": 1}}}, "x.yaml: model.span.high: required but missing"),
        ({"model": {"span": {"low": 3, "high": 2}}}, "x.yaml: model.span: low 3.0 must be below high 2.0"),
        ({"spans": {"model.width": {"lo": 1, "high": 2}}}, "x.yaml: spans.model.width.low: required but missing"),
        (
            {"spans": {"model.width": {"low": 1, "high": 2, "lwo": 2}}},
            "x.yaml: spans.model.width.lwo: unknown key; did you mean 'spans.model.width.low'?",
        ),
        ({"layers": [{"low": 1, "high": 2}, {"low": 1}]}, "x.yaml: layers.1.high: required but missing"),
        ({"optimizer": "adma"}, "x.yaml: optimizer: got 'adma'; it should be 'adam', 'adamw' or 'sgd' (did you mean"),
        ({"lr": "fast"}, "x.yaml: lr: got 'fast'; it should be a valid number, unable to parse"),
        ({"lr": float("inf")}, "x.yaml: lr: got inf; it should be a finite number"),
        ({"model": 3}, "x.yaml: model: got 3; it should be a section (a mapping of keys to values)"),
        ({"model": {"span": 3}}, "x.yaml: model.span: got 3; it should be a section"),
    ],
)
def test_problems_are_named_by_file_path_value_and_remedy(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Root, tree, "x.yaml")
    assert message in str(caught.value)


def test_every_problem_is_reported_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Root, {"lr": "x", "optimizer": 3, "model": {"with": 1, "width": 0}}, "x.yaml")
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[1] for line in lines] == ["model.width", "model.with", "optimizer", "lr"]
    assert lines[0].strip() == "x.yaml: model.width: got 0; it should be 'auto' or greater than or equal to 1"


def test_long_values_are_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Root, {"lr": "x" * 500}, "x.yaml")
    assert len(str(caught.value)) < 250


def test_sections_are_frozen() -> None:
    root = Root()
    with pytest.raises(Exception, match="frozen"):
        root.lr = 3


def test_overrides_set_dotted_paths_and_read_values_as_yaml() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    changed = apply_overrides(tree, ["a.b=1e-4", "e.f=[1, on]", "d={x: null}", "a.c = text "])
    assert changed == {"a": {"b": 1e-4, "c": "text"}, "e": {"f": [1, "on"]}, "d": {"x": None}}
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize("assignment", ["a", "=3", "a.=3", ".a=3", "a..b=3", ""])
def test_assignments_without_path_or_value(assignment: str) -> None:
    with pytest.raises(ConfigError, match="expected path=value"):
        apply_overrides({}, [assignment])


def test_an_assignment_that_is_no_yaml_names_itself() -> None:
    with pytest.raises(ConfigError, match=r"--set a=\[1"):
        apply_overrides({}, ["a=[1"])


def test_keys_with_dots_are_found_by_their_full_name() -> None:
    tree = {"search": {"params": {"model.tokens": {"low": 1, "high": 2}}}}
    assert set_path(tree, "search.params.model.tokens.low", 0)["search"]["params"] == {
        "model.tokens": {"low": 0, "high": 2}
    }
    merged = merge(tree, {"search": {"params": {"train.lr": {"low": 3}}}})
    assert merged["search"]["params"] == {"model.tokens": {"low": 1, "high": 2}, "train.lr": {"low": 3}}
    assert merge(tree, {"search.params": {"model.tokens": {"high": 9}}})["search"]["params"]["model.tokens"] == {
        "low": 1,
        "high": 9,
    }


def test_the_longest_matching_key_is_meant() -> None:
    assert set_path({"a": {"b": 1}, "a.b": {"c": 1}}, "a.b.c", 2) == {"a": {"b": 1}, "a.b": {"c": 2}}


def test_another_kind_drops_the_keys_of_the_old_one_in_tagged_sections_only() -> None:
    tagged = tagged_sections(Root)
    assert tagged == {"model.aggregator"}
    tree = Root().model_dump() | {"protocol": {"kind": "honest", "folds": 10}}
    for overrides in (
        {"model.aggregator.kind": "abmil"},
        {"model.aggregator": {"kind": "abmil"}},
        {"model": {"aggregator": {"kind": "abmil"}}},
    ):
        changed = parse_config(Root, merge(tree, overrides, tagged=tagged), "x")
        assert changed.model.aggregator == Abmil()
        assert changed.protocol.folds == 10
    same = merge(
        tree, {"model.aggregator": {"kind": "asmil", "tokens": 3}, "protocol.kind": "published"}, tagged=tagged
    )
    assert same["model"]["aggregator"] == {"kind": "asmil", "tokens": 3, "hidden": 64}
    assert same["protocol"] == {"kind": "published", "folds": 10}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=5), st.randoms())
@settings(max_examples=80, deadline=None)
def test_the_hash_ignores_the_order_of_keys_and_nothing_else(tree: dict[str, Any], random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, shuffled(item)) for key, item in value.items()]
            random.shuffle(items)
            return dict(items)
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert content_hash(shuffled(tree)) == content_hash(tree) == content_hash(json.loads(json.dumps(tree)))
    assert content_hash({**tree, "another key": 1}) != content_hash(tree)
