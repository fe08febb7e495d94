"""The read bench compares the same bags of every layout, and its memory figures are those of the processes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from asmil.bench import layouts
from asmil.bench.__main__ import main
from asmil.bench.layouts import Reader, draw_lengths, open_readers, write_layouts
from asmil.bench.reading import cell_seconds, layout_rows
from asmil.bench.sharing import sharing_rows
from asmil.errors import EnvironmentProblem


class FakeClock:
    """A clock that only reading moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def reader(self, seconds: Callable[[str], float]) -> Callable[[str], object]:
        def read(bag: str) -> None:
            self.now += seconds(bag)

        return read


def test_a_cell_is_the_median_of_the_passes_after_the_first() -> None:
    clock = FakeClock()
    passes = iter([100.0, 3.0, 1.0, 2.0])
    readers = {"store": Reader(clock.reader(lambda bag: next(passes)), ("a",))}
    cells = cell_seconds(readers, repeats=3, rng=np.random.default_rng(0), clock=clock)
    assert cells == {"store": {"a": 2.0}}


def test_every_layout_reads_all_its_bags_in_every_pass_and_in_turns() -> None:
    seen: list[tuple[str, str]] = []

    def reader(layout: str) -> Callable[[str], object]:
        return lambda bag: seen.append((layout, bag))

    readers = {"store": Reader(reader("store"), ("a", "b", "c")), "pt": Reader(reader("pt"), ("a", "b"))}
    cell_seconds(readers, repeats=2, rng=np.random.default_rng(0))
    turns = [(layout, sorted(bag for _, bag in part)) for layout, part in itertools.groupby(seen, lambda item: item[0])]
    assert turns == [("store", ["a", "b", "c"]), ("pt", ["a", "b"])] * 3


def test_ratios_are_those_of_the_bags_that_both_layouts_have() -> None:
    cells = {
        "store": {"a": 0.002, "b": 0.004, "c": 0.090},
        "preadv": {"a": 0.001, "b": 0.003, "c": 0.060},
        "pt": {"a": 0.006, "b": 0.006},
    }
    rows = {row["layout"]: row for row in layout_rows(cells)}
    assert (rows["store"]["ratio_vs_store"], rows["store"]["ratio_vs_preadv"]) == (1.0, 1.5)  # 96 / 64
    assert (rows["pt"]["ratio_vs_store"], rows["pt"]["ratio_vs_preadv"]) == (2.0, 3.0)  # 12 / 6, 12 / 4: without c
    assert (rows["store"]["cpu_ms_per_bag"], rows["pt"]["cpu_ms_per_bag"]) == (32.0, 6.0)
    assert (rows["store"]["bags"], rows["pt"]["bags"]) == (3, 2)


def test_all_layouts_hold_the_same_values_and_preadv_reads_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[bytearray] = []

    def remember(num_bytes: int) -> bytearray:
        buffers.append(bytearray(num_bytes))
        return buffers[-1]

    monkeypatch.setattr(layouts, "bytearray", remember, raising=False)
    write_layouts(tmp_path, [40, 7, 33], 5, np.random.default_rng(3), num_foreign=2)
    with open_readers(tmp_path, num_foreign=2) as readers:
        for slide in ("slide0000", "slide0001"):
            bags = {name: readers[name].read(slide) for name in ("h5_1_row_chunks", "h5_32_row_chunks", "pt")}
            expected_ND = readers["store"].read(slide).features_ND
            for features_ND in bags.values():
                assert features_ND.dtype == torch.float32
                assert torch.equal(features_ND.half(), expected_ND)
        for slide, length in (("slide0002", 33), ("slide0000", 40)):
            expected_ND = readers["store"].read(slide).features_ND
            assert readers["preadv"].read(slide) == length * (5 * 2 + 2 * 4)
            assert bytes(buffers[0][: length * 10]) == expected_ND.numpy().tobytes()
        assert readers["pt"].bags == ("slide0000", "slide0001")
        assert len(readers["preadv"].bags) == len(readers["store"].bags) == 3


def test_drawn_lengths_are_those_the_bench_speaks_of() -> None:
    lengths = np.array(draw_lengths(20_000, np.random.default_rng(0)))
    assert (lengths.min(), lengths.max()) == (600, 19_850)
    assert 5_000 < lengths.mean() < 5_700


def test_processes_report_what_a_bag_in_hand_adds(tmp_path: Path) -> None:
    length, width = 30_000, 512  # 30 MiB, so that it stands out
    write_layouts(tmp_path, [10, length], width, np.random.default_rng(0), num_foreign=0)
    pread, mapped = sharing_rows(str(tmp_path / "store"), processes=2)
    largest = length * (2 * width + 8) / 2**20
    for row in (pread, mapped):
        assert row["largest_bag_mib"] == pytest.approx(largest, abs=0.1)
        assert row["largest_bag_mib"] <= row["store_mib"] < largest + 1
        assert row["added_mib_per_process"] <= row["added_mib_sum"] <= 2 * row["added_mib_per_process"] + 0.1
    assert largest - 2 < pread["added_mib_per_process"] < largest + 8
    assert largest - 2 < mapped["added_mib_sum"] < largest + 8, "one copy for both"


def test_a_process_that_cannot_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="ended without a result"):
        sharing_rows(str(tmp_path / "nothing"), processes=2)


def test_the_command_prints_every_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "--bags", "2", "--processes", "1", "--folder", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = ["store", "preadv", "h5_1_row_chunks", "h5_32_row_chunks", "pt", "remote"]
    names += ["processes, pread", "processes, map"]
    assert [row["layout"] for row in rows] == names
    assert "checksum verified" in rows[0]["description"]
    assert not list(tmp_path.iterdir())
    assert main(["read", "--bags", "2", "--processes", "1", "--folder", str(tmp_path)]) == 0
    tables = capsys.readouterr().out
    assert all(name in tables for name in names)
    assert tables.count("description") == 3


@pytest.mark.parametrize("words", [["read", "--bags", "0"], ["pack", "--gib", "0"], ["pack", "--gib", "inf"], ["fly"]])
def test_impossible_requests_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    assert words[-1] in capsys.readouterr().err
