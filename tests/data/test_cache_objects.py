"""The cache in front of an object store that speaks S3 or HTTP: requests per machine, and how a download fails."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from asmil.data.cache import blocks_for
from asmil.data.config import CacheConfig, DataConfig
from asmil.data.store import BagStore
from asmil.errors import AsmilError, EnvironmentProblem, IntegrityError
from tests.data.stores import draw_bags, write_store
from tests.storage.object_server import Fault, ObjectServer

SHARD = "shards/part-00001.arrow"
DEADLINE_S = 60
SCHEMES = pytest.mark.parametrize("scheme", ["s3", "http"])


@pytest.fixture
def directory(object_server: ObjectServer) -> Path:
    """A store of three shards on the server."""
    bags = draw_bags([40, 30, 20], num_features=8)
    return write_store(object_server.folder / "bucket/store", bags, target_shard_bytes=1)


@pytest.fixture
def data(object_server: ObjectServer, directory: Path, tmp_path: Path, scheme: str) -> DataConfig:
    cache = CacheConfig(directory=str(tmp_path / "cache"), max_gib=1, min_free_gib=0)
    return DataConfig(store=object_server.address(scheme, "bucket/store"), cache=cache)


def read_through_cache(data: DataConfig) -> list[torch.Tensor]:
    store = BagStore.open(data.store, blocks=partial(blocks_for, data))
    return [store.read(slide_id).features_ND for slide_id in store.slide_ids]


def sums(data: DataConfig) -> list[float]:
    """What a process of its own finds."""
    return [float(features_ND.double().sum()) for features_ND in read_through_cache(data)]


def copies(data: DataConfig, suffix: str) -> list[Path]:
    assert data.cache is not None
    return sorted(Path(data.cache.directory).rglob(f"*{suffix}"))


@pytest.mark.parametrize("scheme", ["s3"])
def test_a_machine_asks_once_for_each_shard(object_server: ObjectServer, directory: Path, data: DataConfig) -> None:
    expected = BagStore.open(str(directory))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [reader.result(DEADLINE_S) for reader in [pool.submit(sums, data) for _ in range(2)]]
    truth = [float(expected.read(slide_id).features_ND.double().sum()) for slide_id in expected.slide_ids]
    assert found == [truth, truth]
    read_through_cache(data)
    shards = [shard.name for shard in expected.info.shards]
    assert [object_server.count("GET", name) for name in shards] == [1, 1, 1]
    assert [path.read_bytes() for path in copies(data, ".arrow")] == [
        (directory / name).read_bytes() for name in shards
    ]


@SCHEMES
@pytest.mark.parametrize("faults", [[503, 503], ["short"], ["reset"], ["garble"]])
def test_a_download_outlives_what_passes(object_server: ObjectServer, data: DataConfig, faults: list[Fault]) -> None:
    object_server.fail(f"GET .*{SHARD}$", faults)
    read_through_cache(data)
    assert len(copies(data, ".arrow")) == 3
    assert object_server.count("GET", SHARD) >= 1 + len(faults)


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (403, EnvironmentProblem, f"{SHARD}: access denied"),
        (503, EnvironmentProblem, f"{SHARD}: cannot be read, 5 attempts failed"),
        (404, IntegrityError, f"shard {SHARD}, bag 'S1': cannot be read .*no such object"),
        (
            "garble",
            IntegrityError,
            f"shard {SHARD}: sha256 mismatch: expected [0-9a-f]+, got [0-9a-f]+ in two downloads",
        ),
    ],
)
def test_a_download_that_fails_leaves_nothing_behind(
    object_server: ObjectServer, data: DataConfig, fault: Fault, kind: type[AsmilError], says: str
) -> None:
    object_server.fail(f"GET .*{SHARD}$", itertools.repeat(fault))
    with pytest.raises(kind, match=says):
        read_through_cache(data)
    assert len(copies(data, ".arrow")) == 1
    assert copies(data, ".part") == []
    object_server.behave()
    read_through_cache(data)
    assert object_server.count("GET", "shards/part-00000.arrow") == 0
    assert len(copies(data, ".arrow")) == 3
