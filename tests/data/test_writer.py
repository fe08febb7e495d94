"""A store appears completely or not at all, and what cannot be stored is refused with its place."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from asmil.data.schema import DatasetFacts
from asmil.data.store import BagStore
from asmil.data.writer import BagWriter
from asmil.errors import DataError, EnvironmentProblem, IntegrityError
from tests.data.stores import draw_bags, flip_bit, shard_paths, write_store


def write_slides(directory: Path, slides: Iterable[tuple[str, np.ndarray, dict[str, Any]]], **options: Any) -> None:
    with BagWriter(directory, num_features=3, **options) as writer:
        for slide_id, features_ND, extra in slides:
            writer.add(slide_id, features_ND, **extra)


def test_shards_are_plain_arrow_with_one_batch_per_bag(tmp_path):
    bags = draw_bags([3, 2, 4])
    directory = write_store(tmp_path / "s", bags, dtype="float32")
    [path] = shard_paths(directory)
    reader = pa.ipc.open_file(path.read_bytes())
    assert reader.schema == pa.schema(
        [
            pa.field("features", pa.list_(pa.field("item", pa.float32(), nullable=False), 3), nullable=False),
            pa.field("coords", pa.list_(pa.field("item", pa.int32(), nullable=False), 2), nullable=False),
        ]
    )
    assert reader.num_record_batches == 3
    for position, (slide_id, features_ND) in enumerate(bags.items()):
        batch, metadata = reader.get_batch_with_custom_metadata(position)
        batch.validate(full=True)
        assert metadata.to_dict() == {b"slide_id": slide_id.encode(), b"n": str(len(features_ND)).encode()}
        assert np.array_equal(np.array(batch.column("features").to_pylist(), np.float32), features_ND)


def test_the_same_bags_give_the_same_bytes(tmp_path):
    bags = draw_bags([3, 2, 4])
    labels = pd.DataFrame({"slide": list(bags), "target": [0, 1, 1]})
    first, second = (write_store(tmp_path / name, bags, labels, target_shard_bytes=1) for name in "ab")
    files = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert [str(path) for path in files] == [
        "dataset.json", "index.arrow", "labels.arrow", *(f"shards/part-0000{i}.arrow" for i in range(3)),
    ]  # fmt: skip
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()


def test_the_data_id_ignores_sharding_and_order_but_no_value(tmp_path):
    bags = draw_bags([3, 2, 4])

    def data_id(name: str, bags: dict[str, np.ndarray], **options: object) -> str:
        return BagStore.open(str(write_store(tmp_path / name, bags, **options))).info.dataset_id

    expected = data_id("a", bags)
    assert data_id("b", bags, target_shard_bytes=1) == expected
    assert data_id("c", dict(reversed(bags.items()))) == expected
    changed = {**bags, "S1": bags["S1"] + 1}
    assert data_id("d", changed) != expected
    assert data_id("e", {**{k: v for k, v in bags.items() if k != "S2"}, "T2": bags["S2"]}) != expected


def test_facts_are_kept(tmp_path):
    facts = DatasetFacts(
        encoder="uni", mpp=0.5, tile_size=256, simulated=True, facts={"oracle_c_index": 0.71}, provenance={"from": "x"}
    )
    info = BagStore.open(str(write_store(tmp_path / "s", draw_bags([3, 2]), facts=facts))).info
    assert {name: getattr(info, name) for name in type(facts).model_fields} == dict(facts)
    assert (info.num_features, info.dtype, info.coord_dtype) == (3, "float16", "int32")
    assert (info.num_bags, info.num_instances) == (2, 5)


def test_the_label_table_is_kept_with_ids_as_text(tmp_path):
    labels = pd.DataFrame({"slide": ["S0", "S1"], "patient": ["007", "NA"], "time": [1.5, np.nan], "event": [1, 0]})
    found = BagStore.open(str(write_store(tmp_path / "s", draw_bags([3, 2]), labels))).labels()
    pd.testing.assert_frame_equal(found, labels)
    assert BagStore.open(str(write_store(tmp_path / "t", draw_bags([3, 2])))).labels() is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.DataFrame({"slide": []}), "needs rows"),
        (pd.DataFrame({"slide": ["S0", 1]}), "mixed types"),
        (pd.DataFrame([["S0", 1]], columns=["slide", "slide"]), "distinct column names"),
        (pd.DataFrame([["S0", 1]]), "distinct column names"),
    ],
)
def test_unusable_label_tables_are_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        write_store(tmp_path / "s", draw_bags([3]), labels)


BAD_IDS = [
    "../../x",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "a\n",
    "x" * 129,
    "x" * 300,
    "\N{GREEK CAPITAL LETTER MU}USK-1",
    "",
    ".hidden",
    "a/b",
    "a b",
]


@pytest.mark.parametrize("slide_id", BAD_IDS)
def test_ids_that_could_be_something_else_are_refused(tmp_path, slide_id):
    with pytest.raises(DataError, match="slide id"):
        write_store(tmp_path / "s", {slide_id: np.ones((2, 3), np.float32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "slide_id", ["MUSK-188", "NON-MUSK-jp10", "0", "x" * 128, "TCGA-2F-A9KO-01Z-00-DX1.195576CF", "a+b_c"]
)
def test_ids_in_use_are_accepted(tmp_path, slide_id):
    directory = write_store(tmp_path / "s", {slide_id: np.ones((2, 3), np.float32)})
    assert BagStore.open(str(directory)).read(slide_id).num_instances == 2


def with_values(values: dict[int, float], dtype: type = np.float32) -> np.ndarray:
    features_ND = np.ones((9, 3), dtype)
    for row, value in values.items():
        features_ND[row, row % 3] = value
    return features_ND


@pytest.mark.parametrize(
    ("dtype", "features_ND", "message"),
    [
        ("float16", with_values({4: np.nan, 7: np.inf}), "2 feature values are NaN or infinite and 0 exceed.*row 4"),
        ("float16", with_values({8: 70000.0}), "0 feature values are NaN or infinite and 1 exceed the float16.*row 8"),
        ("float16", with_values({2: -65520.0, 5: np.nan}), "1 feature values.*and 1 exceed.*row 2"),
        ("float32", with_values({3: -np.inf}), "1 feature values.*row 3"),
        ("float32", with_values({3: 1e300}, np.float64), "and 1 exceed the float32.*row 3"),
        ("bfloat16", with_values({6: 3.4e38}), "and 1 exceed the bfloat16.*row 6"),
        ("bfloat16", with_values({6: np.nan}), "1 feature values.*row 6"),
        ("bfloat16", np.full((2, 3), 0x7F80, np.uint16), "6 feature values.*row 0"),
        ("float16", np.ones((2, 4), np.float32), r"shape \(2, 4\), expected \[N, 3\]"),
        ("float16", np.ones(3, np.float32), r"shape \(3,\), expected \[N, 3\]"),
        ("float16", np.ones((0, 3), np.float32), "0 instances"),
        ("float16", np.ones((2, 3), np.int64), "dtype int64"),
        ("float16", np.ones((2, 3), np.uint16), "dtype uint16"),
    ],
)
def test_features_that_cannot_be_stored_are_refused(tmp_path, dtype, features_ND, message):
    slides = [("good", np.ones((2, 3), np.float32), {}), ("bad", features_ND, {})]
    with pytest.raises(DataError, match=f"slide 'bad': .*{message}"):
        write_slides(tmp_path / "s", slides, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_values_of_a_dtype_are_kept(tmp_path):
    values = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}
    for dtype, largest in values.items():
        directory = write_store(tmp_path / dtype, {"a": np.full((1, 2), -largest)}, dtype=dtype)
        assert BagStore.open(str(directory)).read("a").features_ND.double().tolist() == [[-largest, -largest]]


def test_memory_order_and_byte_order_of_the_source_do_not_matter(tmp_path):
    features_ND = draw_bags([6])["S0"]
    bags = {"c": features_ND, "f": np.asfortranarray(features_ND), "be": features_ND.astype(">f4")}
    bags["strided"] = np.repeat(features_ND, 2, axis=0)[::2]
    store = BagStore.open(str(write_store(tmp_path / "s", bags, dtype="float32")))
    for slide_id in bags:
        assert np.array_equal(store.read(slide_id).features_ND.numpy(), features_ND)


ONE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"coords_N2": np.zeros((3, 2), int)}, r"shape \(3, 2\), features have 2 rows"),
        ({"coords_N2": np.zeros((2, 2))}, "coordinates are float64, those of earlier slides are int32"),
        ({"coords_N2": np.full((2, 2), 1 << 31)}, "2 coordinates do not fit int32, first in row 0"),
        ({}, "has no coordinates but the slides before it have coordinates"),
        ({"coords_N2": np.zeros((2, 2), int), "instance_labels_N": np.zeros(2, int)}, "has instance labels but"),
    ],
)
def test_slides_of_a_store_have_the_same_columns(tmp_path, extra, message):
    slides = [("a", ONE, {"coords_N2": np.zeros((2, 2), int)}), ("b", ONE, extra)]
    with pytest.raises(DataError, match=f"slide 'b'.*{message}"):
        write_slides(tmp_path / "s", slides)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"coords_N2": np.array([[0.0, 1.0], [np.nan, 0.0]])}, "1 coordinates do not fit float32, first in row 1"),
        ({"instance_labels_N": np.zeros(3, int)}, r"shape \(3,\), features have 2 rows"),
        ({"instance_labels_N": np.zeros(2)}, "dtype float64, expected whole numbers"),
        ({"instance_labels_N": np.full(2, 128)}, "between -128 and 127"),
    ],
)
def test_extra_columns_that_cannot_be_stored_are_refused(tmp_path, extra, message):
    with pytest.raises(DataError, match=f"slide 'a': .*{message}"):
        write_slides(tmp_path / "s", [("a", ONE, extra)])


def test_a_slide_comes_once_and_a_store_is_not_empty(tmp_path):
    with pytest.raises(DataError, match="slide 'a' is given twice"):
        write_slides(tmp_path / "s", [("a", ONE, {}), ("a", ONE, {})])
    with pytest.raises(DataError, match="no bags were written"):
        write_slides(tmp_path / "s", [])
    with pytest.raises(DataError, match="got 0"):
        BagWriter(tmp_path / "s", num_features=0)
    with pytest.raises(DataError, match="float8"):
        BagWriter(tmp_path / "s", num_features=3, dtype="float8")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_the_end_and_an_exception_leaves_nothing(tmp_path):
    directory = tmp_path / "s"
    directory.mkdir()

    def slides():
        for name in "abc":
            yield name, ONE, {}
            with pytest.raises(DataError, match="not a store"):
                BagStore.open(str(directory))
        raise KeyError

    with pytest.raises(KeyError):
        write_slides(directory, slides(), target_shard_bytes=1)
    assert list(directory.iterdir()) == []


def test_existing_data_are_never_touched(tmp_path):
    directory = write_store(tmp_path / "s", {"a": ONE})
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"found a store: dataset\.json"):
        write_store(directory, {"b": ONE})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other data.*mine\.txt"):
        write_store(tmp_path / "notes", {"b": ONE})
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_one_writer_per_directory(tmp_path):
    with BagWriter(tmp_path / "s", num_features=3) as writer:
        writer.add("a", ONE)
        with pytest.raises(DataError, match="another process is writing this store"):
            write_store(tmp_path / "s", {"b": ONE})
        writer.add("c", ONE)
    assert BagStore.open(str(tmp_path / "s")).slide_ids == ("a", "c")


def test_a_full_disk_leaves_nothing_and_says_what_was_needed(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            EnvironmentProblem, match=r"part-00000\.arrow\.tmp: cannot take 2\d{5} more bytes"
        ) as caught:
            write_store(tmp_path / "s", {"a": ONE, "b": np.ones((20_000, 3), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_reads_back_otherwise_is_not_published(tmp_path, monkeypatch):
    def sync_and_spoil(path: Path) -> None:
        content = path.read_bytes()
        position = content.index(np.float32(0.625).tobytes())
        flip_bit(path, position)

    monkeypatch.setattr("asmil.data.shards.sync_file", sync_and_spoil)
    with pytest.raises(IntegrityError, match="features of slide 'b' read back differ from what was written"):
        write_store(tmp_path / "s", {"a": ONE, "b": np.full((1, 3), 0.625, np.float32)}, dtype="float32")
    assert list(tmp_path.iterdir()) == []


KILLED_AT_EACH_RENAME = """
import os, signal, sys
from pathlib import Path
import numpy as np
from asmil.data.writer import BagWriter

def write(directory, renames_to_survive):
    def replace(source, target, real=os.replace):
        nonlocal renames_to_survive
        if renames_to_survive == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        renames_to_survive -= 1
        real(source, target)
    os.replace = replace
    with BagWriter(Path(directory), num_features=3, target_shard_bytes=1) as writer:
        for name in "ab":
            writer.add(name, np.ones((4, 3), np.float32))

for number in range(5):
    child = os.fork()
    if child == 0:
        write(f"{sys.argv[1]}/{number}", number)
        os._exit(0)
    print(number, os.waitpid(child, 0)[1])
"""


def test_a_killed_writer_leaves_no_store(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_RENAME, str(tmp_path)],
        capture_output=True, text=True, timeout=100, check=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["0 9", "1 9", "2 9", "3 9", "4 0"], done.stderr
    for number in range(4):
        directory = tmp_path / str(number)
        with pytest.raises(DataError, match=r"dataset\.json is missing beside.*shards/\.?part-00000\.arrow"):
            BagStore.open(str(directory))
        with pytest.raises(DataError, match="interrupted conversion"):
            write_store(directory, {"a": ONE})
    assert BagStore.open(str(tmp_path / "4")).slide_ids == ("a", "b")
