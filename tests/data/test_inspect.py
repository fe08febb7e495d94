"""`python -m asmil.data.inspect`: the JSON against figures worked out apart, findings, and what is printed where."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from asmil.data.inspect import main
from asmil.data.inspection.figures import inspect_store
from asmil.data.inspection.findings import LONG_BAG
from asmil.data.inspection.text import print_sections
from asmil.data.schema import DatasetFacts
from asmil.data.store import BagStore
from asmil.data.tables.given import GivenFold, GivenSplits
from asmil.data.writer import BagWriter
from tests.data import stores
from tests.run_support import refusal

LENGTHS = (1, 3, 3, 8, 40, 12)
FACTS: dict[str, Any] = {
    "encoder": "uni_v1",
    "mpp": 0.5,
    "tile_size": 256,
    "coord_unit": "level0_px",
    "coord_origin": "top_left",
    "provenance": {"format": "trident-h5", "num_files": 7, "left_out": {"S9.h5": "cut"}, "no_tissue": ["S8"]},
}


def label_table(slides: Sequence[str]) -> pd.DataFrame:
    """Two slides per patient; months and events by patient."""
    number = np.arange(len(slides)) // 2
    return pd.DataFrame(
        {"slide": list(slides), "patient": [f"P{n}" for n in number], "event": number % 2, "time_months": 10.0 + number}
    )


def write(folder: Path, bags: dict[str, np.ndarray], **given: Any) -> Path:
    """A store of float32 bags with 4 features, labels, splits and facts."""
    facts = DatasetFacts(**{**FACTS, **given.get("facts", {})})
    with BagWriter(folder, num_features=4, dtype="float32", facts=facts) as writer:
        for slide_id, features_ND in bags.items():
            rows = np.arange(len(features_ND))
            coords_N2 = np.stack([rows, rows], axis=1) if given.get("coords", True) else None
            writer.add(slide_id, features_ND, coords_N2=coords_N2)
        if "labels" in given:
            writer.set_labels(given["labels"])
        if "splits" in given:
            writer.set_splits(given["splits"].to_bytes())
    return folder


def splits(*folds: tuple[Sequence[str], Sequence[str]]) -> GivenSplits:
    return GivenSplits(
        layout="CLAM splits",
        files={"task/splits_0.csv": "0" * 64},
        allow_incomplete=True,
        folds=tuple(
            GivenFold(name=f"splits_{number}.csv", train=tuple(train), test=tuple(test))
            for number, (train, test) in enumerate(folds)
        ),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six slides of three patients with labels and two folds."""
    bags = stores.draw_bags(LENGTHS, num_features=4)
    names = list(bags)
    given = splits((names[:4], names[4:]), (names[2:5], names[:2]))
    return write(tmp_path / "store", bags, labels=label_table(names), splits=given)


def figures_of(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(folder), "--json", *words]) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    return tree


def kinds(tree: dict[str, Any]) -> dict[str, list[str]]:
    return {finding["kind"]: finding["slides"] for finding in tree["findings"]}


def test_json_has_every_figure(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = figures_of(store, capsys)
    info = BagStore.open(str(store)).info
    assert tree["format"] == "asmil-inspect/1"
    assert tree["facts"]["encoder"] == "uni_v1"
    assert tree["facts"]["dataset_id"] == info.dataset_id
    assert tree["facts"]["provenance"] == FACTS["provenance"]
    assert tree["sizes"] == {
        "bags": 6,
        "instances": sum(LENGTHS),
        "shards": 1,
        "shard_bytes": sum(path.stat().st_size for path in stores.shard_paths(store)),
        "feature_bytes": sum(LENGTHS) * 4 * 4,
    }
    assert (tree["lengths"]["median"], tree["lengths"]["longest"]) == (np.median(LENGTHS), 40)
    groups, outcome = tree["labels"]["groups"], tree["labels"]["outcome"]
    assert (groups["column"], groups["groups"], groups["slides_per_group"]) == ("patient", 3, {"2": 3})
    assert (outcome["units"], outcome["events"], outcome["time_unit"]) == (3, 1, "months")
    assert tree["splits"]["folds"] == [
        {"name": "splits_0.csv", "train": 4, "val": 0, "test": 2, "in_no_part": 0},
        {"name": "splits_1.csv", "train": 3, "val": 0, "test": 2, "in_no_part": 1},
    ]
    assert (tree["splits"]["repeated_holdouts"], tree["splits"]["tested"]) == (False, 4)
    assert tree["features"]["dependence"] == {
        "by_count": 3, "checked": 3, "dependent": 0, "share": 0.5, "is_estimate": False
    }  # fmt: skip
    assert tree["duplicates"] == []
    assert kinds(tree) == {"single_instance": ["S0"], "left_out": ["S9.h5"]}


def test_a_sample_reads_so_many_bags_and_all_reads_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "s", stores.draw_bags([2] * 40, num_features=4))
    read: list[str] = []
    original = BagStore.read

    def counting(self: BagStore, slide_id: str) -> Any:
        read.append(slide_id)
        return original(self, slide_id)

    monkeypatch.setattr(BagStore, "read", counting)
    for words, number in (((), 32), (("--sample", "2"), 2), (("--sample", "99"), 40), (("--all",), 40)):
        read.clear()
        features = figures_of(folder, capsys, *words)["features"]
        assert (len(read), len(set(read)), features["bags"]) == (number, number, number)
        assert features["is_complete"] == (number == 40)


def test_same_features_between_patients_and_in_two_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = stores.draw_bags((5, 5, 5, 5, 5, 5), num_features=4)
    bags["S3"], bags["S5"] = bags["S0"], bags["S4"]
    names = list(bags)
    folder = write(tmp_path / "s", bags, labels=label_table(names), splits=splits((names[:3], names[3:])))
    tree = figures_of(folder, capsys)
    assert tree["duplicates"] == [["S0", "S3"], ["S4", "S5"]]
    found = kinds(tree)
    assert found["duplicates_between_patients"] == ["S0", "S3"]
    assert found["duplicates_within_patients"] == ["S4", "S5"]
    assert found["duplicates_in_two_parts"] == ["S0", "S3"]
    without = write(tmp_path / "t", bags)
    assert kinds(figures_of(without, capsys))["duplicates_between_patients"] == ["S0", "S3", "S4", "S5"]


def test_labels_that_do_not_match_are_listed_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = stores.draw_bags([3] * 12, num_features=4)
    labels = label_table([*list(bags)[:1], *(f"x{number}" for number in range(12))])
    labels.loc[0, "patient"] = None
    found = kinds(figures_of(write(tmp_path / "s", bags, labels=labels), capsys))
    assert found["bags_without_label"] == [f"S{number}" for number in range(1, 12)]
    assert found["labels_without_bag"] == [f"x{number}" for number in range(12)]
    assert "slides_without_group" in found
    elsewhere = write(tmp_path / "t", bags, labels=label_table(["x", "y"]))
    assert "no_id_column" in kinds(figures_of(elsewhere, capsys))
    assert "no_labels" in kinds(figures_of(write(tmp_path / "u", bags), capsys))
    renamed = label_table(list(bags)).rename(columns={"patient": "who"})
    other = write(tmp_path / "v", bags, labels=renamed)
    assert "no_groups" in kinds(figures_of(other, capsys))
    assert "no_groups" not in kinds(figures_of(other, capsys, "--group-column", "who"))


def test_features_and_facts_that_should_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags = stores.draw_bags((6, 6), num_features=4)
    bags["S0"][2] = bags["S0"][5]
    bags["S1"][1] = 0
    for values_ND in bags.values():
        values_ND[:, 3] = 0
    unknown = {"encoder": None, "mpp": None, "coord_unit": None}
    tree = figures_of(write(tmp_path / "s", bags, facts=unknown), capsys)
    found = kinds(tree)
    assert (found["zero_rows"], found["repeated_rows"]) == (["S1"], ["S0"])
    assert tree["features"]["constant_columns"] == [3]
    assert {"constant_features", "no_coordinate_unit", "unknown_facts"} <= found.keys()
    plain = kinds(figures_of(write(tmp_path / "t", bags, coords=False), capsys))
    assert "no_coordinates" in plain


def test_a_bag_longer_than_a_micro_batch_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_N1 = np.zeros((LONG_BAG + 1, 1), np.float16)
    with BagWriter(tmp_path / "s", num_features=1) as writer:
        writer.add("short", long_N1[:LONG_BAG])
        writer.add("long", long_N1)
    assert kinds(figures_of(tmp_path / "s", capsys))["very_long"] == ["long"]


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_is_plain_in_a_pipe_and_drawn_on_a_terminal(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(store)]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert out.isascii() or "µ" in out
    assert "bags 6 with 67 instances" in lines
    assert "features 4 x float32, encoder uni_v1" in lines
    assert "resolution 0.5 µm/px, 256 px tiles" in lines
    assert "made from trident-h5, 7 files, 1 without tissue, 1 left out" in lines
    assert "20 to 49 #################### 1" in lines
    assert any(line.startswith("outcome 3 groups, 1 events (33.3 %), median follow-up ") for line in lines)
    assert "splits_1.csv 3 train, 0 val, 2 test, 1 in no part" in lines
    assert (
        "affinely dependent 50.0 % of the bags: 3 by count (more than 5 instances), 0 of 3 shorter ones by rank"
        in lines
    )
    assert any(line.startswith("! 1 bags have a single instance") for line in lines)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    print_sections(inspect_store(str(store), sample=None), terminal)
    drawn = terminal.getvalue()
    assert "\x1b[" in drawn
    assert "6 with 67 instances" in drawn


def test_simulated_data_are_said_first_and_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "s", stores.draw_bags((3, 4), num_features=4), facts={"simulated": True})
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.startswith("SIMULATED: these data were made up\n")
    terminal = Terminal()
    print_sections(inspect_store(str(folder), sample=None), terminal)
    assert "SIMULATED" in terminal.getvalue().splitlines()[0]
    assert figures_of(folder, capsys)["facts"]["simulated"] is True


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_reader_that_stops_early_is_no_failure(
    store: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str]
) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main([str(store), *words]) == 0
        monkeypatch.undo()


def test_exit_codes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(lambda: main([str(tmp_path / "nowhere")]), capsys).code == 2
    assert refusal(lambda: main([str(store), "--group-column", "nix"]), capsys).code == 2
    with pytest.raises(SystemExit, match="2"):
        main([str(store), "--sample", "0"])
    assert "--sample: '0' is not a positive whole number" in capsys.readouterr().err
    (shard,) = stores.shard_paths(store)
    stores.flip_bit(shard, BagStore.open(str(store)).index.row("S4").feat_offset)
    damaged = refusal(lambda: main([str(store), "--all"]), capsys)
    assert (damaged.code, "checksum mismatch" in damaged.message) == (3, True)
