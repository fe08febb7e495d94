"""Trivial trials for the tests of the searcher; imports little, because every Ray worker imports it."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from ray import tune as ray_tune

EPOCHS = 4


def report(epoch: int, objective: float, checkpoint: ray_tune.Checkpoint | None = None, **more: Any) -> None:
    metrics = {"objective": objective, "epoch": epoch, "finished": epoch == EPOCHS, "pid": os.getpid(), **more}
    ray_tune.report(metrics, checkpoint=checkpoint)


def well_behaved(config: dict[str, Any]) -> None:
    """The objective grows with the epoch, faster with a larger x."""
    for epoch in range(1, EPOCHS + 1):
        report(epoch, config["overrides"]["x"] * epoch)


def troubled(config: dict[str, Any]) -> None:
    """Trial 1 raises and trial 2 loses its objective; the others are fine."""
    if config["number"] == 1:
        raise ValueError("a defect")
    report(1, 0.5)
    if config["number"] == 2:
        report(2, float("nan"), reason="diverged")
    else:
        report(EPOCHS, 0.7)


def broken(config: dict[str, Any]) -> None:
    raise ValueError("a defect")


def killed_once(config: dict[str, Any]) -> None:
    """Trial 1 dies by SIGKILL after its second epoch, once; every report says which epoch its process started after."""
    started = 0
    checkpoint = ray_tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            started = json.loads((Path(directory) / "state.json").read_text())
    for epoch in range(started + 1, EPOCHS + 1):
        if config["number"] == 1 and epoch == 3 and started == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "state.json").write_text(str(epoch))
            report(epoch, 0.1 * epoch, ray_tune.Checkpoint.from_directory(directory), started=started)
