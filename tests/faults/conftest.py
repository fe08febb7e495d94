"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest

from tests.faults.support import Commands


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str]) -> Commands:
    """The commands of the data plane."""
    return Commands(capsys)
