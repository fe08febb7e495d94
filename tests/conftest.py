"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.storage.fixtures import object_server, pauses, running_object_server

__all__ = ["object_server", "pauses", "running_object_server"]

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, which is not part of the project."""
    folder = Path(os.environ.get("ASMIL_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data folder {folder} is absent (set ASMIL_SHARED)")
    return folder
