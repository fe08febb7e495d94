"""Fixtures for tests that read from an object store; `tests/conftest.py` offers them to all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.storage.object_server import ObjectServer

__all__ = ["object_server", "pauses", "running_object_server"]


@pytest.fixture(scope="session")
def running_object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """One server for all tests of this process."""
    with ObjectServer(tmp_path_factory.mktemp("object-server")) as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been slept between attempts."""
    slept: list[float] = []
    monkeypatch.setattr("asmil.storage.location.sleep", slept.append)
    return slept


@pytest.fixture
def object_server(
    running_object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> Iterator[ObjectServer]:
    """The server, empty and well-behaved, as endpoint of S3 and Google's store; nothing pauses between attempts."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": running_object_server.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "STORAGE_EMULATOR_HOST": running_object_server.endpoint,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }.items():
        monkeypatch.setenv(name, value)
    (running_object_server.folder / "bucket").mkdir()
    running_object_server.behave()
    yield running_object_server
    shutil.rmtree(running_object_server.folder / "bucket")
