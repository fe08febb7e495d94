"""A store in an object store or behind any fsspec address: the same bags, one request each, and how it fails."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch

from asmil.data.store import BagStore
from asmil.data.verify import main as verify
from asmil.data.writer import BagWriter
from asmil.errors import DataError, EnvironmentProblem, IntegrityError
from tests.data.stores import draw_bags, feature_sum, flip_bit, shard_paths, write_store
from tests.run_support import classification
from tests.storage.object_server import ObjectServer

BAGS = draw_bags([3, 2, 400, 5, 1], num_features=4)
TABLE = pd.DataFrame({"slide": list(BAGS), "target": [0, 1, 1, 0, 1]})
SCHEMES = pytest.mark.parametrize("scheme", ["s3", "gs", "http"])


@pytest.fixture
def directory(object_server: ObjectServer) -> Path:
    """A store of several shards on the server."""
    return write_store(object_server.folder / "bucket/data/store", BAGS, TABLE, target_shard_bytes=2000)


def address(server: ObjectServer, scheme: str) -> str:
    return server.address(scheme, "bucket/data/store")


def check_bags(store: BagStore) -> None:
    assert store.slide_ids == tuple(BAGS)
    for slide_id, features_ND in BAGS.items():
        bag = store.read(slide_id)
        assert torch.equal(bag.features_ND, torch.from_numpy(features_ND.astype(np.float16)))
        rows = np.arange(len(features_ND))
        assert np.array_equal(bag.coords_N2.numpy(), np.stack([rows, 2 * rows], axis=1))


@SCHEMES
def test_one_get_per_stored_slide_after_opening(object_server: ObjectServer, directory: Path, scheme: str) -> None:
    store = BagStore.open(address(object_server, scheme))
    assert (store.uri, store.local_root) == (address(object_server, scheme), None)
    assert len(store.info.shards) > 1
    assert not any("part-" in request.path for request in object_server.requests), "no shard is touched"
    object_server.forget_requests()
    check_bags(store)
    check_bags(store)
    assert object_server.count("GET") == 2 * len(BAGS)
    for asked, slide_id in zip([r for r in object_server.requests if r.method == "GET"], [*BAGS, *BAGS], strict=True):
        row = store.index.row(slide_id)
        assert (asked.first, asked.last) == (row.feat_offset, row.coord_offset + row.coord_nbytes - 1)
    heads = len(store.info.shards) if scheme == "s3" else 0  # S3: the size, once per shard
    assert object_server.count("HEAD") == heads


@SCHEMES
def test_opening_costs_the_same_whatever_the_number_of_shards(
    object_server: ObjectServer, tmp_path: Path, scheme: str
) -> None:
    requests = []
    for name, shard_bytes in {"one": 1 << 20, "many": 1}.items():
        write_store(object_server.folder / "bucket" / name, BAGS, target_shard_bytes=shard_bytes)
        object_server.forget_requests()
        BagStore.open(object_server.address(scheme, f"bucket/{name}"))
        requests.append(len(object_server.requests))
    assert requests[0] == requests[1] == {"s3": 5, "gs": 3, "http": 2}[scheme]


@SCHEMES
def test_labels_splits_instance_labels_and_restriction(object_server: ObjectServer, scheme: str) -> None:
    directory = object_server.folder / "bucket/data/store"
    with BagWriter(directory, num_features=4, dtype="float32") as writer:
        for slide_id, features_ND in BAGS.items():
            writer.add(slide_id, features_ND, instance_labels_N=np.arange(len(features_ND)) % 3)
        writer.set_labels(TABLE)
    store = BagStore.open(address(object_server, scheme))
    pd.testing.assert_frame_equal(store.labels(), TABLE)
    assert store.given_splits() is None
    assert store.read("S2").instance_labels_N.tolist() == [row % 3 for row in range(400)]
    assert store.read("S2").coords_N2 is None
    part = store.restrict(["S1"])
    assert part.labels() is None
    assert torch.equal(part.read("S1").features_ND, torch.from_numpy(BAGS["S1"]))
    with pytest.raises(DataError, match=r"no slide 'S0' in this restricted view"):
        part.read("S0")


def test_fsspec_addresses_open_the_same_way(tmp_path: Path) -> None:
    directory = write_store(tmp_path / "s", BAGS, TABLE, target_shard_bytes=2000)
    root = f"/{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(f"{directory}/", root, recursive=True)
    for uri in (f"memory:/{root}", f"local://{directory}", f"file://{directory}"):
        store = BagStore.open(uri)
        check_bags(store)
        pd.testing.assert_frame_equal(store.labels(), TABLE)
        assert verify([uri]) == 0


@pytest.mark.parametrize(("scheme", "method"), [("s3", "fork"), ("gs", "fork"), ("http", "fork"), ("s3", "spawn")])
def test_other_processes_read_a_store_that_was_opened_here(
    object_server: ObjectServer, directory: Path, scheme: str, method: str
) -> None:
    """Takes some seconds for a spawned process, which imports everything anew."""
    store = BagStore.open(address(object_server, scheme))
    check_bags(store)
    blob = pickle.dumps(store)
    assert len(blob) < 4000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        found = list(pool.map(feature_sum, [blob] * 8, ["S2", "S0"] * 4, timeout=60))
    assert found == [float(BAGS[slide_id].astype(np.float16).astype(float).sum()) for slide_id in ["S2", "S0"] * 4]


@SCHEMES
def test_threads_share_a_remote_store(object_server: ObjectServer, directory: Path, scheme: str) -> None:
    store = BagStore.open(address(object_server, scheme))
    with ThreadPoolExecutor(4) as pool:
        for slide_id, bag in zip([*BAGS] * 10, pool.map(store.read, [*BAGS] * 10), strict=True):
            assert torch.equal(bag.features_ND, torch.from_numpy(BAGS[slide_id].astype(np.float16)))


def test_a_listing_shows_missing_and_cut_shards_at_once(object_server: ObjectServer, directory: Path) -> None:
    [first, *_, last] = shard_paths(directory)
    size = last.stat().st_size
    with last.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(IntegrityError, match=rf"^s3://bucket/data/store: shard .* has {size - 1} bytes, .*says {size}"):
        BagStore.open("s3://bucket/data/store")
    first.unlink()
    with pytest.raises(IntegrityError, match=r"part-00000\.arrow is missing"):
        BagStore.open("s3://bucket/data/store")


@SCHEMES
def test_without_a_listing_missing_and_cut_shards_fail_their_bags_only(
    object_server: ObjectServer, directory: Path, pauses: list[float], scheme: str
) -> None:
    object_server.fail("prefix=", itertools.repeat(403))
    store = BagStore.open(address(object_server, scheme))
    first, last = shard_paths(directory)[0], shard_paths(directory)[-1]
    row = store.index.row("S4")
    with last.open("r+b") as file:
        file.truncate(row.feat_offset + 3)
    with pytest.raises(
        IntegrityError, match=rf"bag 'S4', features: the file ends early: expected {row.feat_nbytes} .*got 3"
    ):
        store.read("S4")
    num_pauses = 1 if scheme == "gs" else 4
    assert len(pauses) == num_pauses, "it could have been the network"
    first.unlink()
    with pytest.raises(
        IntegrityError, match=r"part-00000\.arrow, bag 'S0': cannot be read \(.*no such object\); restore"
    ):
        store.read("S0")
    assert len(pauses) == num_pauses


@SCHEMES
def test_bytes_that_arrive_damaged_are_fetched_once_more(
    object_server: ObjectServer, directory: Path, scheme: str
) -> None:
    store = BagStore.open(address(object_server, scheme))
    object_server.fail("GET .*part-00000", ["garble"])
    object_server.forget_requests()
    assert torch.equal(store.read("S0").features_ND, torch.from_numpy(BAGS["S0"].astype(np.float16)))
    assert object_server.count("GET") == 2
    object_server.fail("GET .*part-00000", itertools.repeat("garble"))
    object_server.forget_requests()
    with pytest.raises(IntegrityError, match=r"bag 'S0', coords: checksum mismatch: expected xxh3 \w{16}, got \w{16};"):
        store.read("S0")
    assert object_server.count("GET") == 2


@SCHEMES
def test_verify_of_a_remote_store(
    object_server: ObjectServer, directory: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = address(object_server, scheme)
    object_server.forget_requests()
    assert verify([uri]) == 0
    assert capsys.readouterr().out.startswith(f"{uri}: 5 bags, 411 instances, ")
    num_shards = len(shard_paths(directory))
    assert sum(r.method == "GET" and "part-" in r.path for r in object_server.requests) == num_shards, "each read once"
    row = BagStore.open(uri).index.row("S2")
    path = shard_paths(directory)[row.shard]
    flip_bit(path, row.feat_offset)
    flip_bit(shard_paths(directory)[-1], 0)
    with pytest.raises(IntegrityError, match=f"^{uri}: 4 damages"):
        verify([uri])
    out = capsys.readouterr().out
    assert f"shard {path.relative_to(directory)} has sha256" in out
    assert "bag 'S2', features: checksum mismatch" in out
    assert "part-00001.arrow is not a feature shard: an Arrow file begins and ends with b'ARROW1'" in out


def test_verify_lists_shards_that_are_missing_or_cut_where_nothing_is_listed(
    object_server: ObjectServer, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = address(object_server, "http")
    first, *_, last = shard_paths(directory)
    size = last.stat().st_size
    with last.open("r+b") as file:
        file.truncate(size - 1)
    first.unlink()
    with pytest.raises(IntegrityError, match="2 damages"):
        verify([uri])
    out = capsys.readouterr().out
    assert "part-00000.arrow cannot be read" in out
    assert f"has {size - 1} bytes, dataset.json says {size}" in out


def test_training_on_an_s3_store_writes_to_the_run_directory_only(
    object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = classification(tmp_path)
    target = object_server.folder / "bucket/store"
    tiny.store.rename(target)
    before = sorted(target.rglob("*"))
    run = tiny.run("--set", "data.store=s3://bucket/store", "--epochs", "1")
    assert sorted(target.rglob("*")) == before
    assert len(list((run / "splits").glob("kfold-*.json"))) == 1
    assert list(run.rglob("*.safetensors"))
    object_server.fail("GET .*part-", itertools.repeat(503))
    with pytest.raises(
        EnvironmentProblem, match=r"s3://bucket/store/shards/part-00000\.arrow: cannot be read, 5 attempts"
    ):
        tiny.run("--set", "data.store=s3://bucket/store", "--epochs", "1")
