"""Experiments: variants, demo, overrides, round trip, hash, and the files that are shipped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asmil.errors import ConfigError
from tasks.spec import Choices, Complement, ExperimentSpec, Range, load_experiment

TASKS = Path(__file__).resolve().parents[2] / "tasks"
SHIPPED = sorted(TASKS.glob("*.yaml"))
BASE = """
task: {kind: survival}
data: {store: somewhere, labels: {time: t, event: e}}
model: {aggregator: {kind: asmil, tokens: 4}}
search: {params: {model.aggregator.tokens: {choices: [2, 4]}, train.lr: {low: 1e-4, high: 1e-2, log: true}}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def settings_of(path: Path) -> Iterator[tuple[str, ExperimentSpec]]:
    """The experiment of a file as it is, in each variant, and as demo."""
    yield "plain", load_experiment(path)
    text = path.read_text()
    section = re.search(r"^variants:\n((?:  .*\n|\n)+)", text, flags=re.MULTILINE)
    for variant in re.findall(r"^  (\w+):", section.group(1), flags=re.MULTILINE) if section else ():
        yield variant, load_experiment(path, variant=variant)
    if re.search(r"^demo:", text, flags=re.MULTILINE):
        yield "demo", load_experiment(path, demo=True)


def test_every_promised_experiment_is_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {
        "tcga_survival", "camelyon16", "camelyon17", "bracs", "musk1", "musk2", "fox", "tiger", "elephant", "digits",
        "smoke",
    }  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_experiment_parses_round_trips_and_builds_its_task(path: Path) -> None:
    for name, spec in settings_of(path):
        tree = json.loads(json.dumps(spec.tree(), allow_nan=False))
        assert ExperimentSpec.model_validate(tree) == spec, name
        assert ExperimentSpec.model_validate(tree).hash() == spec.hash(), name
        assert spec.task.build(spec.data.labels).monitor.metric
        assert spec.data.labels.group is not None or spec.protocol.independent_bags
        assert (spec.data.labels.split is not None) == (spec.protocol.scheme == "official")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_searched_setting_exists_and_allows_its_bounds(path: Path) -> None:
    for _, spec in settings_of(path):
        assert {"model.anchor.ema_factor", "model.anchor.kl_weight", "model.aggregator.drop_rate"} <= set(
            spec.search.params
        )
        for setting, param in spec.search.params.items():
            node: Any = spec.tree()
            for key in setting.split("."):
                assert key in node, setting
                node = node[key]
            for value in extremes(param):
                spec.override({setting: value}, "test")


def extremes(param: Range | Complement | Choices) -> tuple[Any, ...]:
    if isinstance(param, Choices):
        return param.choices
    if isinstance(param, Complement):
        return 1 - param.complement.low, 1 - param.complement.high
    return param.low, param.high


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_experiment_says_where_it_comes_from_and_what_to_compare(path: Path) -> None:
    head = path.read_text().split("\ntask:")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert len(head) < 2500
    if path.stem != "smoke":
        for part in ("Data:", "Protocol:", "Compare with"):
            assert part in head


def test_the_survival_experiment_follows_the_published_protocol() -> None:
    blca = load_experiment(TASKS / "tcga_survival.yaml")
    assert (blca.train.optimizer, blca.train.lr, blca.train.weight_decay, blca.train.decay_vectors) == (
        "adam", 2e-4, 1e-5, False,
    )  # fmt: skip
    assert (blca.train.epochs, blca.train.bags_per_step, blca.train.schedule) == (10, 32, "constant")
    assert (blca.protocol.folds, blca.protocol.epoch_rule, blca.data.bag) == (5, "last", "patient")
    glioma = load_experiment(TASKS / "tcga_survival.yaml", variant="gbmlgg")
    assert (glioma.train.epochs, glioma.train.bags_per_step) == (5, 16)
    assert glioma.data.store.endswith("/tcga_gbmlgg")
    bladder = load_experiment(TASKS / "tcga_survival.yaml", variant="blca")
    assert (bladder.train, bladder.protocol, bladder.data.store) == (blca.train, blca.protocol, blca.data.store)
    assert (blca.references, blca.task.expected_event_rate, blca.data.labels.covariates) == ((), None, ())
    assert [(known.metric, known.value) for known in bladder.references] == [("c_index", 0.614)]
    demo = load_experiment(TASKS / "tcga_survival.yaml", demo=True)
    assert (demo.data.store, demo.protocol.scheme, demo.task.expected_event_rate) == ("builtin:cohort", "holdout", None)
    assert 12 <= demo.search.trials <= 16
    assert demo.search.params == blca.search.params


def test_overrides_are_applied_in_order_variant_demo_set(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        BASE
        + "train: {epochs: 1, lr: 1e-3}\nvariants: {v: {train.epochs: 2, train.lr: 2e-3}}\ndemo: {train: {lr: 3e-3}}",
    )
    assert load_experiment(path).train.epochs == 1
    spec = load_experiment(path, variant="v", demo=True, assignments=["train.epochs=4", "train.epochs=5"])
    assert (spec.train.epochs, spec.train.lr) == (5, 3e-3)


def test_unknown_variants_and_files_without_a_demo(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "variants: {a: {}, b: {}}")
    with pytest.raises(ConfigError, match=r"x\.yaml: no variant 'c'; this file has: a, b"):
        load_experiment(path, variant="c")
    with pytest.raises(ConfigError, match=r"has no demo: section"):
        load_experiment(path, demo=True)
    with pytest.raises(ConfigError, match=r"x\.yaml: variants: expected a mapping of overrides, got 3"):
        load_experiment(write(tmp_path, BASE + "variants: 3"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.aggregator.toknes=4", "model.aggregator.toknes: unknown key; did you mean 'model.aggregator.tokens'?"),
        ("task.hed=hazard", "task.hed: unknown key; did you mean 'task.head'?"),
        ("task.bins.rul=quantile", "task.bins.rul: unknown key; did you mean 'task.bins.rule'?"),
        ("tain.lr=1", "tain: unknown key; did you mean 'train'?"),
        ("task.kind=survial", "task.kind: got 'survial'; it should be 'classification', 'survival', 'benchmark' (did"),
        (
            "model.anchor.normaliser=nsf",
            "model.anchor.normaliser: unknown key; did you mean 'model.anchor.normalizer'?",
        ),
        (
            "search.params.train.lr.lwo=1",
            "search.params.train.lr.lwo: unknown key; did you mean 'search.params.train.lr",
        ),
        ("search.params.x={chioces: [1]}", "search.params.x.chioces: unknown key"),
        ("search.params.x={choices: []}", "search.params.x.choices: "),
        ("search.params.x={low: 3, high: 2}", "search.params.x: low 3.0 must be below high 2.0"),
        ("search.params.x={low: 0, high: 2, log: true}", "search.params.x: a logarithmic range needs low > 0, got 0.0"),
        ("search.params.x={low: 0.5, high: 2, integer: true}", "search.params.x: an integer range needs whole bounds"),
        ("search.params.x={complement: {low: 1}}", "search.params.x.complement.high: required but missing"),
        ("search.params.x=3", "search.params.x: got 3; it should be a section"),
        ("data.store=null", "data.store: got None; it should be a valid string"),
    ],
)
def test_mistakes_name_file_path_and_remedy(tmp_path: Path, assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, BASE), assignments=[assignment])
    assert f"x.yaml: {message}" in str(caught.value)


def test_searched_settings_can_be_changed_and_added_from_the_command_line(tmp_path: Path) -> None:
    spec = load_experiment(
        write(tmp_path, BASE),
        assignments=[
            "search.params.model.aggregator.tokens={choices: [8]}",
            "search.params.train.lr.high=1",
            "search.params.model.anchor.ema_factor={complement: {low: 1e-4, high: 1e-1, log: true}}",
        ],
    )
    assert spec.search.params == {
        "model.aggregator.tokens": Choices(choices=(8,)),
        "train.lr": Range(low=1e-4, high=1, log=True),
        "model.anchor.ema_factor": Complement(complement=Range(low=1e-4, high=1e-1, log=True)),
    }


def test_another_kind_starts_from_its_own_defaults(tmp_path: Path) -> None:
    spec = load_experiment(write(tmp_path, BASE), assignments=["model.aggregator.kind=abmil"])
    assert spec.model.aggregator.kind == "abmil"
    assert spec.override({"model.aggregator": {"kind": "asmil", "tokens": 2}}, "x").model.aggregator.tokens == 2
    assert spec.override({"protocol.split_seed": 4}, "x").protocol.folds == spec.protocol.folds
    assert load_experiment(write(tmp_path, BASE), assignments=["model.anchor=null"]).model.anchor is None


def test_an_override_names_its_source() -> None:
    spec = load_experiment(TASKS / "smoke.yaml")
    with pytest.raises(ConfigError, match=r"^trial 3: model\.aggregator\.tokens: got 0"):
        spec.override({"model.aggregator.tokens": 0}, "trial 3")


def test_remembered_attention_needs_all_instances(tmp_path: Path) -> None:
    spec = load_experiment(write(tmp_path, BASE)).override({"model.anchor.target": "temporal"}, "x")
    with pytest.raises(ConfigError, match=r"data\.sample_instances.*model\.anchor\.target: temporal") as caught:
        spec.override({"data.sample_instances": 512}, "trial 3")
    assert str(caught.value).startswith("trial 3: ")
    spec.override({"data.sample_instances": 512, "model.anchor": None}, "x")


def test_the_hash_is_of_settings_not_of_places_or_budgets(tmp_path: Path) -> None:
    spec = load_experiment(write(tmp_path, BASE))
    lines = BASE.strip().splitlines()
    assert load_experiment(write(tmp_path, "\n".join(reversed(lines)))).hash() == spec.hash()
    swapped = BASE.replace("time: t, event: e", "event: e, time: t").replace("[2, 4]", "[2,4]")
    assert load_experiment(write(tmp_path, swapped)).hash() == spec.hash()
    for path, value in {
        "data.store": "elsewhere",
        "data.labels.table": "/tmp/labels.csv",
        "data.batch_instances": 7,
        "data.prefetch_mib": 7,
        "data.cache": {"directory": "/scratch/asmil", "max_gib": 100},
        "data.read": "map",
        "train.device": "cpu",
        "search.trials": 3,
        "search.max_concurrent": 2,
    }.items():
        assert spec.override({path: value}, "x").hash() == spec.hash(), path
    for path, value in {
        "train.seed": 1,
        "train.lr": 3e-3,
        "data.labels.time": "u",
        "data.group_lengths": True,
        "data.sample_instances": 512,
        "protocol.split_seed": 1,
        "task.alpha": 0.1,
        "search.params": {"train.lr": {"high": 1}},
        "search.seed": 1,
        "model.anchor": None,
    }.items():
        assert spec.override({path: value}, "x").hash() != spec.hash(), path
