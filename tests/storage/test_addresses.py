"""Addresses: what they open, and that none of them, nor any message, may hold a secret."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs
import pytest

from asmil.errors import AsmilError, ConfigError, DataError, EnvironmentProblem
from asmil.storage import open_fs
from asmil.storage.addresses import local_path


def test_local_addresses_are_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_path("data/s") == tmp_path / "data/s"
    assert local_path("~/s") == Path("/home/someone/s")
    assert local_path("file:///data/with%20space") == Path("/data/with space")
    assert local_path("FILE://localhost/data") == Path("/data")
    assert local_path("s3://bucket/s") is None
    with pytest.raises(ConfigError, match="three slashes"):
        local_path("file://data/s")
    filesystem, path = open_fs("data/s")
    assert isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    assert path == f"{tmp_path}/data/s"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hunter2@bucket/s",
        "s3://hunter2@bucket/s",
        "https://user:hunter2@host/s",
        "https://hunter2@host/s",
        "ftp://user:hunter2@host/s",
        "s3://bucket/s?secret_key=hunter2",
        "https://host/s?X-Amz-Signature=hunter2",
        "s3://bucket:hunter2/s",
        "https://[hunter2/s",
        "simplecache::s3://me:hunter2@bucket/s",
        "s 3://me:hunter2@bucket/s",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_fs(uri)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("s3://", ConfigError, "names no bucket; expected such as s3://bucket/prefix"),
        ("s3:///s", ConfigError, "names no bucket"),
        ("gs://-x/s", ConfigError, "names no bucket"),
        ("nope://x/s", DataError, r"nope://x/s: not an address that can be opened"),
        ("a b://x/s", ConfigError, "a b://x/s: not an address that can be opened"),
        ("abfs://container@account/s", EnvironmentProblem, "install that package"),
    ],
)
def test_what_cannot_be_opened_says_what_can(uri: str, kind: type[AsmilError], message: str) -> None:
    with pytest.raises(kind, match=message):
        open_fs(uri)


def test_s3_takes_endpoint_and_region_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    filesystem, path = open_fs("s3://bucket/folder/store/")
    assert (filesystem.region, path) == ("eu-central-1", "bucket/folder/store")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert open_fs("s3://bucket")[0].region == "us-west-2"
    for endpoint in ("127.0.0.1:9", "ftp://host", "http://key:hunter2@host"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(EnvironmentProblem, match="AWS_ENDPOINT_URL: expected http") as caught:
            open_fs("s3://bucket")
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:9")
    open_fs("s3://bucket")


def test_the_region_is_asked_for_where_nothing_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", {"bucket": "ap-south-1"}.__getitem__)
    assert open_fs("s3://bucket/s")[0].region == "ap-south-1"
