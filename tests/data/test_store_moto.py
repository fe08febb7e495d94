"""A store on an S3 server that others wrote (moto): the same requests and bags as on our own server of the tests."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch

from asmil.data.store import BagStore
from asmil.data.verify import main as verify
from asmil.errors import DataError, IntegrityError
from tests.data.stores import draw_bags, write_store
from tests.run_support import classification

BAGS = draw_bags([3, 2, 400, 5], num_features=4)


class CountedMoto:
    """Moto's S3 on loopback; notes the method and path of every request."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that moto imports
            moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")
            werkzeug_serving = pytest.importorskip("werkzeug.serving")
            self._app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.requests: list[tuple[str, str]] = []
        self._server = werkzeug_serving.make_server("127.0.0.1", 0, self._note, threaded=True)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str) -> int:
        """Requests so far."""
        return sum(found == method for found, _ in self.requests)

    def _note(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        body: Iterable[bytes] = self._app(environ, start_response)
        return body


@pytest.fixture(scope="module")
def running_moto() -> Iterator[CountedMoto]:
    moto = CountedMoto()
    yield moto
    moto.close()


@pytest.fixture
def moto(running_moto: CountedMoto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountedMoto:
    """The server with a bucket that holds a store of several shards."""
    for name, value in {
        "AWS_ENDPOINT_URL": running_moto.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    upload(write_store(tmp_path / "store", BAGS, target_shard_bytes=2000), "bucket/data/store")
    running_moto.requests.clear()
    return running_moto


def upload(directory: Path, target: str) -> None:
    """Put a folder into a bucket, replacing what is there."""
    s3 = pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    s3.create_dir(target.partition("/")[0])
    pyarrow.fs.copy_files(f"file://{directory}", target, destination_filesystem=s3)


def test_one_get_per_stored_slide_after_opening(moto: CountedMoto) -> None:
    store = BagStore.open("s3://bucket/data/store")
    assert moto.count("GET") == 3, "dataset.json, index.arrow and one listing"
    assert len(store.info.shards) > 1
    moto.requests.clear()
    for slide_id, features_ND in BAGS.items():
        assert torch.equal(store.read(slide_id).features_ND, torch.from_numpy(features_ND.astype(np.float16)))
    assert moto.count("GET") == len(BAGS)
    assert moto.count("HEAD") == len(store.info.shards)
    assert len(moto.requests) == len(BAGS) + len(store.info.shards)


def test_verify(moto: CountedMoto, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(["s3://bucket/data/store"]) == 0
    assert "4 bags, 410 instances" in capsys.readouterr().out


@pytest.mark.parametrize("uri", ["s3://bucket/nothing", "s3://no-such-bucket/store"])
def test_what_is_missing(moto: CountedMoto, pauses: list[float], uri: str) -> None:
    with pytest.raises(DataError, match=f"^{uri}: nothing at this address is called dataset"):
        BagStore.open(uri)
    assert pauses == []


def test_a_shard_that_is_missing_or_of_another_size(moto: CountedMoto, tmp_path: Path) -> None:
    shard = tmp_path / "store" / BagStore.open("s3://bucket/data/store").info.shards[-1].name
    shard.write_bytes(shard.read_bytes()[:-1])
    upload(tmp_path / "store", "bucket/data/cut")
    with pytest.raises(IntegrityError, match=rf"shard shards/{shard.name} has \d+ bytes, dataset\.json says"):
        BagStore.open("s3://bucket/data/cut")
    shard.unlink()
    upload(tmp_path / "store", "bucket/data/gone")
    with pytest.raises(IntegrityError, match=rf"shard shards/{shard.name} is missing"):
        BagStore.open("s3://bucket/data/gone")


def test_training_for_an_epoch_only_reads(moto: CountedMoto, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    tiny = classification(tmp_path / "run")
    upload(tiny.store, "bucket/tiny")
    moto.requests.clear()
    run = tiny.run("--set", "data.store=s3://bucket/tiny", "--epochs", "1")
    assert list(run.rglob("*.safetensors"))
    assert {method for method, _ in moto.requests} == {"GET", "HEAD"}
