"""The only door to test bags. Whoever opens it leaves a line in a ledger that every later report prints."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asmil.data.splits import SplitPlan
from asmil.errors import IntegrityError
from asmil.storage import disk_problems

__all__ = ["open_test", "read_ledger"]


def open_test(plan: SplitPlan, repeat: int, fold: int, *, ledger: Path, why: str) -> tuple[str, ...]:
    """The test bags of an outer fold, once the ledger says that they were asked for.

    Args:
        plan: The split.
        repeat: Repetition of the scheme.
        fold: Outer fold.
        ledger: File of one JSON object per line; made if absent, only ever appended to.
        why: What the test part is opened for, such as the command.

    Returns:
        Bag ids in cohort order.

    Raises:
        DataError: There is no such fold.
        EnvironmentProblem: The ledger cannot be written; the seal stays closed.
    """
    test_ids = plan._test_ids(repeat, fold)
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset_id": plan.dataset_id,
        "split": plan.hash,
        "repeat": repeat,
        "fold": fold,
        "why": why,
    }
    with disk_problems(ledger, "be written, so the test part stays sealed"):
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return test_ids


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Every opening of a test part so far, oldest first; none if there is no ledger.

    Raises:
        IntegrityError: A line is not a ledger entry.
    """
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError(f"expected an object, got {line[:40]}")
        except ValueError as error:
            raise IntegrityError(f"{path}: line {number} is not a ledger entry ({error}); restore the file") from None
        entries.append(entry)
    return entries
