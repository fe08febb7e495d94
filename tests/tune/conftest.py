"""One small Ray cluster for all tests that need one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tune.cluster import connect


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Two CPUs on this machine, started with the first test that asks and stopped at the end."""
    directory = tempfile.mkdtemp(prefix="ray")  # not tmp_path: socket paths are limited to 107 bytes
    try:
        with connect("local", num_cpus=2, temp_dir=directory):
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
