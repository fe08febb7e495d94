"""The benches compare like with like and report what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asmil.bags import Bag, BagBatch
from asmil.bench import PerTokenAsmil, _asmil_model, main, read_rows, step_rows


def test_the_per_token_form_computes_the_same_function_and_gradient() -> None:
    model = _asmil_model(166).double()
    with torch.no_grad():
        model.anchor.path.token_Td.normal_(generator=torch.Generator().manual_seed(1))
        model.aggregator.score_path.token_Td.normal_(generator=torch.Generator().manual_seed(2))
    batch = BagBatch.pack(
        [Bag("bag", torch.randn(9, 166, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))]
    )
    output = model(batch)
    kl = model.anchor_loss(output, batch)[0]
    (output.logits_BC.sum() + kl).backward()
    gradient = model.aggregator.score_path.projection.weight.grad.clone()
    model.zero_grad()
    logits, slow_kl = PerTokenAsmil(model)(batch)
    torch.testing.assert_close(logits, output.logits_BC)
    torch.testing.assert_close(slow_kl, kl)
    (logits.sum() + slow_kl).backward()
    torch.testing.assert_close(model.aggregator.score_path.projection.weight.grad, gradient)


def test_step_rows_hold_the_ratios_of_their_milliseconds() -> None:
    rows = step_rows([20, 60], width=64, repeats=3)
    assert [row["n"] for row in rows] == [20, 60]
    for row in rows:
        assert row["ratio_vs_per_token"] == pytest.approx(row["per_token_ms"] / row["asmil_ms"], rel=0.02)
        assert row["ratio_vs_abmil"] == pytest.approx(row["asmil_ms"] / row["abmil_ms"], rel=0.02)


def test_read_rows_compare_every_layout_with_the_store(tmp_path: Path) -> None:
    rows = {row["layout"]: row for row in read_rows(bags=3, repeats=1, folder=tmp_path)}
    assert set(rows) == {"store", "h5_1_row_chunks", "h5_32_row_chunks", "pt"}
    assert rows["store"]["ratio_vs_store"] == 1.0
    chunks = rows["h5_1_row_chunks"]
    ratio = chunks["cpu_ms_per_bag"] / rows["store"]["cpu_ms_per_bag"]
    assert chunks["ratio_vs_store"] == pytest.approx(ratio, rel=0.02)
    assert "float16" in rows["store"]["description"]
    assert not list(tmp_path.iterdir())


def test_memory_is_printed_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmil.bench.MEMORY_LENGTH", 100)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert main(["memory"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["n"], row["d"]) == (100, 1024)
    assert row["peak_gib"] > 0
