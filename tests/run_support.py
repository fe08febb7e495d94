"""Small stores and experiment files for the tests of the command line, and a way to run it as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from asmil.config import merge
from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter
from asmil.errors import run_command
from asmil.run import main

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_FEATURES = 6
NUM_BAGS = 24

CLASSIFICATION: dict[str, Any] = {
    "task": {"kind": "classification", "classes": ["normal", "tumor"], "monitor": "macro_auc"},
    "protocol": {"scheme": "kfold", "folds": 3, "independent_bags": True, "inner": {"holdout": 0.25}},
    "data": {"labels": {"target": "label"}, "prefetch_threads": 1},
    "model": {
        "inner_dim": 8,
        "aggregator": {"kind": "asmil", "tokens": 2, "heads": 2},
        "anchor": {"ema_factor": 0.9, "kl_weight": 0.1},
    },
    "train": {"epochs": 3, "lr": 0.01, "bags_per_step": 4, "stability_bags": 3, "device": "cpu", "seed": 7},
}
SURVIVAL: dict[str, Any] = {
    **CLASSIFICATION,
    "task": {"kind": "survival"},
    "protocol": {"scheme": "kfold", "folds": 3, "inner": {"holdout": 0.25}},
    "data": {"labels": {"group": "patient", "time": "months", "event": "event"}, "bag": "patient"},
}

Bags = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tiny:
    """An experiment file and the store it names."""

    file: Path
    store: Path

    def run(self, *options: object) -> Path:
        """Run the command in this process; the run directory, `--out` if given or else a new one beside the file."""
        words = [str(option) for option in options]
        if "--out" not in words:
            number = len(list(self.file.parent.glob("out-*")))
            words += ["--out", str(self.file.parent / f"out-{number}")]
        assert main([str(self.file), *words]) == 0
        return Path(words[words.index("--out") + 1])


def draw_bags(num_bags: int = NUM_BAGS, *, seed: int = 0) -> Bags:
    """Bags s00, s01, ...; the first instance of every second one lies elsewhere."""
    rng = np.random.default_rng(seed)
    bags = {}
    for index in range(num_bags):
        features_ND = rng.normal(size=(int(rng.integers(2, 9)), NUM_FEATURES)).astype(np.float32)
        features_ND[0, 0] += 4 * (index % 2)
        bags[f"s{index:02d}"] = features_ND
    return bags


def class_table(bags: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Every second bag is a tumor."""
    return pd.DataFrame({"slide": list(bags), "label": [("normal", "tumor")[index % 2] for index in range(len(bags))]})


def outcome_table(bags: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Two slides per patient; two of three patients have an event, and earlier if they are odd."""
    patients = np.arange(len(bags)) // 2
    return pd.DataFrame(
        {
            "slide": list(bags),
            "patient": [f"p{patient:02d}" for patient in patients],
            "months": 40.0 - 20.0 * (patients % 2) + patients / 2,
            "event": (patients % 3 > 0).astype(int),
        }
    )


def write_experiment(
    folder: Path,
    tree: Mapping[str, Any],
    bags: Bags,
    labels: pd.DataFrame | None,
    *,
    changes: Mapping[str, Any] | None = None,
    simulated: bool = False,
) -> Tiny:
    """Write `store/` and `experiment.yaml` into a folder; `changes` are dotted settings."""
    with BagWriter(
        folder / "store", num_features=NUM_FEATURES, dtype="float32", facts=DatasetFacts(simulated=simulated)
    ) as writer:
        for slide_id, features_ND in bags.items():
            writer.add(slide_id, features_ND)
        if labels is not None:
            writer.set_labels(labels)
    return write_file(folder, tree, changes or {})


def write_file(folder: Path, tree: Mapping[str, Any], changes: Mapping[str, Any]) -> Tiny:
    """Write `experiment.yaml` into a folder, for the store there."""
    store = folder / "store"
    full = merge(merge(tree, {"data.store": str(store)}), changes)
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(full), encoding="utf-8")
    return Tiny(file, store)


def classification(folder: Path, **changes: Any) -> Tiny:
    """Twelve normal and twelve tumor bags."""
    bags = draw_bags()
    return write_experiment(folder, CLASSIFICATION, bags, class_table(bags), **changes)


def survival(folder: Path, **changes: Any) -> Tiny:
    """Fifteen patients with two slides each."""
    bags = draw_bags(30)
    return write_experiment(folder, SURVIVAL, bags, outcome_table(bags), **changes)


def result_of(out: Path) -> dict[str, Any]:
    """What a run wrote into `result.json`."""
    tree: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return tree


def events_of(out: Path) -> list[dict[str, Any]]:
    """The event log of a run; every line must be JSON."""
    return [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def history_of(out: Path, training: str = "validation") -> dict[int, dict[str, Any]]:
    """The epochs in a run's event log without anything that depends on the clock; the last word on each counts."""
    epochs = [event for event in events_of(out) if event["event"] == "epoch" and event["training"] == training]
    clock = {"time", "seconds", "bags_per_second"}
    return {event["epoch"]: {name: event[name] for name in event.keys() - clock} for event in epochs}


@dataclass(frozen=True)
class Refusal:
    """How a command ended that was not carried out."""

    code: int
    message: str


def refusal(command: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must end with an error of one paragraph; anything but an `AsmilError` passes through."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(command)
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "\n\n" not in text.strip()
    assert isinstance(ended.value.code, int)
    return Refusal(ended.value.code, text.removeprefix("error: ").strip())


def start(words: Sequence[object], **options: Any) -> subprocess.Popen[str]:
    """Start Python in a new process, in the folder of the project."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **options)
