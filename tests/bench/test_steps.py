"""The step bench compares like with like and reports what its names say."""

from __future__ import annotations

import json

import pytest
import torch

from asmil.bags import Bag, BagBatch
from asmil.bench.__main__ import main
from asmil.bench.steps import PerTokenAsmil, _asmil_model, step_rows


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


def test_memory_is_printed_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmil.bench.steps.MEMORY_LENGTH", 100)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert main(["memory"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["n"], row["d"]) == (100, 1024)
    assert row["peak_gib"] > 0
