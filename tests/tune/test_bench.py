"""The account of where a search's time goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.bench import search_row


@pytest.mark.ray
def test_every_trial_is_counted_and_actors_are_reused(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASMIL_DATA", str(tmp_path / "data"))
    row = search_row(tmp_path, trials=5, epochs=2)
    assert row["trials"] == 5
    assert 1 <= row["workers"] <= row["slots"]
    worker_seconds = row["seconds"] * row["slots"]
    trained = 5 * row["mean_trial_seconds"]
    assert row["share_outside_training"] == pytest.approx(1 - trained / worker_seconds, abs=0.01)
    assert row["trials_per_minute"] == pytest.approx(300 / row["seconds"], rel=0.01)
