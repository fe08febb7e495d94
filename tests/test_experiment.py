"""Opening an experiment: which split file belongs to which official split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from asmil.data.sealed import open_test
from asmil.experiment import Experiment, open_experiment
from tasks.spec import load_experiment
from tests.run_support import CLASSIFICATION, class_table, draw_bags, write_experiment

PARTS = ["train"] * 12 + ["val"] * 4 + ["test"] * 8


def opened(folder: Path, labels: pd.DataFrame, column: str) -> Experiment:
    """The experiment in a folder, with this label table and split column."""
    table = folder / "labels.csv"
    labels.to_csv(table, index=False)
    file = folder / "experiment.yaml"
    if not file.exists():
        changes = {"protocol": {"scheme": "official"}, "data.labels.table": str(table), "data.labels.split": column}
        write_experiment(folder, CLASSIFICATION, draw_bags(), None, changes=changes)
    spec = load_experiment(file).override({"data.labels.split": column}, "test")
    return open_experiment(spec, folder / "run")


def of_test_part(experiment: Experiment) -> list[str]:
    return list(open_test(experiment.plan, 0, 0, ledger=experiment.ledger, why="test"))


def test_each_official_column_and_every_change_of_its_parts_has_a_split_of_its_own(tmp_path: Path) -> None:
    slides = list(draw_bags())
    labels = class_table(draw_bags()).assign(first=PARTS, second=PARTS[::-1])
    first, second = opened(tmp_path, labels, "first"), opened(tmp_path, labels, "second")
    assert of_test_part(first) == slides[16:]
    assert of_test_part(second) == slides[:8]
    moved = opened(tmp_path, labels.assign(first=["test", "test", *PARTS[2:]]), "first")
    assert of_test_part(moved) == [*slides[:2], *slides[16:]]
    assert not {*slides[:2]} & {*moved.plan.development(0, 0).bag_ids}
    again = opened(tmp_path, labels, "first")
    assert (again.plan.hash, of_test_part(again)) == (first.plan.hash, slides[16:])
    assert len({first.plan.hash, second.plan.hash, moved.plan.hash}) == 3
    assert len(list((tmp_path / "store" / "splits").iterdir())) == 3
