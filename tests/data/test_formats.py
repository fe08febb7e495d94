"""What holds for every format of `FORMATS`, tried on small units in the layouts of the tools; each entry has one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from asmil.data.arrays import coord_dtype_of
from asmil.data.packing.scan import refuse_unused_options
from asmil.data.packing.shard_job import sent_options
from asmil.data.packing.walk import find_units
from asmil.data.sources import (
    FORMATS,
    ContentError,
    ReadOptions,
    Source,
    SourceBag,
    SourceFormat,
    UnknownContentError,
    detect,
)
from asmil.errors import DataError
from tests.data import foreign_hdf5
from tests.data.foreign_units import EXPECTED, WRITERS, Expected, format_of

GIVEN: dict[str, Any] = {
    "drop_last_column": True,
    "patches": Path("patches"),
    "keep_augmented": True,
    "features": "nonsense",
}
ONLY_ANSWERED = ("lazyslide-zarr",)  # recognised, and answered with what to do instead


@dataclass(frozen=True)
class Case:
    """A unit on the disk and what it holds."""

    name: str
    unit: Path
    expected: Expected

    @property
    def form(self) -> str:
        return format_of(self.name)

    def open(self) -> Source:
        return detect(self.unit).format.open(self.unit, ReadOptions())

    def files(self) -> list[Path]:
        """The unit's files, and those beside it that belong to it."""
        return sorted(path for path in self.unit.parent.rglob("*") if path.is_file())


@pytest.fixture
def case(tmp_path: Path, name: str) -> Case:
    """The unit of that name, freshly written."""
    return Case(name, WRITERS[name](tmp_path), EXPECTED[name])


def test_every_format_has_a_unit_and_a_name_of_its_own() -> None:
    assert len({form.name for form in FORMATS}) == len(FORMATS)
    assert {form.name for form in FORMATS} == {format_of(name) for name in WRITERS}
    assert WRITERS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", WRITERS)
class TestEveryFormat:
    """One small unit of each format and variant."""

    def test_it_is_taken_for_no_other_format(self, case: Case) -> None:
        kind = "folder" if case.unit.is_dir() else "file"
        accepted = {form.name: form.detect(case.unit) for form in FORMATS if form.unit == kind}
        assert [name for name, reason in accepted.items() if reason is not None] == [case.form]
        assert accepted[case.form]

    def test_detection_does_not_depend_on_the_name(self, case: Case) -> None:
        renamed = case.unit.rename(case.unit.with_name("another.name"))
        assert detect(renamed).format.name == case.form

    def test_a_search_from_above_finds_this_unit_only(self, case: Case, tmp_path: Path) -> None:
        found = find_units([tmp_path], _is_folder_unit)
        assert found.units == [case.unit]
        companions = detect(case.unit).format.sidecars
        assert all(any(path.match(pattern) for pattern in companions) for path in found.sidecars)


@pytest.mark.parametrize("name", [name for name in WRITERS if format_of(name) not in ONLY_ANSWERED])
class TestEveryReader:
    """The same units, without those that are only recognised."""

    def test_bags_labels_and_slides_without_tissue_are_those_of_the_source(self, case: Case) -> None:
        source = case.open()
        assert _bags_of(source).keys() == case.expected.bags.keys()
        for slide_id, bag in _bags_of(source).items():
            _assert_same(bag, case.expected.bags[slide_id])
        assert {slide_id: dict(row) for slide_id, row in source.labels.items()} == case.expected.labels
        assert source.no_tissue == case.expected.no_tissue

    def test_headers_say_what_reading_gives(self, case: Case) -> None:
        source = case.open()
        for header in source.slides:
            bag = source.read(header.slide_id)
            assert bag.features_ND.shape == (header.num_instances, header.num_features)
            assert (bag.features_ND.dtype.kind, bag.features_ND.dtype.isnative) == ("f", True)
            assert header.coords == (None if bag.coords_N2 is None else coord_dtype_of(bag.coords_N2))
            assert header.has_instance_labels == (bag.instance_labels_N is not None)

    def test_reading_is_repeatable_in_any_order(self, case: Case) -> None:
        source, other = case.open(), case.open()
        assert (source.slides, source.facts, source.no_tissue) == (other.slides, other.facts, other.no_tissue)
        again = {header.slide_id: other.read(header.slide_id) for header in reversed(other.slides)}
        for slide_id, bag in _bags_of(source).items():
            _assert_same(bag, again[slide_id])
            _assert_same(bag, source.read(slide_id))

    def test_declared_options_are_those_it_looks_at(self, case: Case) -> None:
        form, watched = detect(case.unit).format, _WatchedOptions()
        source = form.open(case.unit, watched)
        for header in source.slides:
            source.read(header.slide_id)
        assert form.options == set(watched.seen)

    def test_a_cut_file_is_an_error_or_changes_nothing(self, case: Case) -> None:
        refused = 0
        for path in case.files():
            content = path.read_bytes()
            for num_bytes in sorted({0, len(content) // 4, len(content) // 2, 3 * len(content) // 4, len(content) - 1}):
                path.write_bytes(content[:num_bytes])
                refused += _refused_or_as_expected(case)
            path.write_bytes(content)
        assert refused >= 3


class _WatchedOptions(ReadOptions):
    """Notes which options a reader looks at."""

    @property
    def seen(self) -> list[str]:
        found: list[str] = self.__dict__.setdefault("noted", [])
        return found

    def __getattribute__(self, name: str) -> Any:
        if name in GIVEN:
            self.seen.append(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_options_that_a_format_does_not_declare_are_refused(form: SourceFormat, option: str) -> None:
    read = sent_options(replace(ReadOptions(), **{option: GIVEN[option]}))
    if option in form.options:
        refuse_unused_options(form.name, read)
        return
    with pytest.raises(DataError) as refused:
        refuse_unused_options(form.name, read)
    users = ", ".join(other.name for other in FORMATS if option in other.options)
    start = f"--{option.replace('_', '-')}: {form.name} files have no use for it; formats that do: {users}; leave it "
    assert str(refused.value).startswith(start)


def test_every_option_has_a_format_that_uses_it_and_none_is_given_by_default() -> None:
    assert {option.name for option in fields(ReadOptions)} == GIVEN.keys() == set().union(*(f.options for f in FORMATS))
    for form in FORMATS:
        refuse_unused_options(form.name, sent_options(ReadOptions()))


@pytest.mark.parametrize("name", ONLY_ANSWERED)
def test_what_is_only_recognised_says_why(case: Case) -> None:
    with pytest.raises(ContentError, match=str(case.unit)):
        case.open()


def test_lock_and_temporary_files_beside_the_data_are_left_alone(tmp_path: Path) -> None:
    unit = WRITERS["stamp-h5"](tmp_path)
    left = [tmp_path / name for name in ("s.h5.lock", "tmpq3x_5n9a", "s.h5.tmp", "s.h5.part", ".s.h5")]
    for path in left:
        path.write_bytes(unit.read_bytes())
    found = find_units([tmp_path], _is_folder_unit)
    assert (found.units, sorted(found.ignored)) == ([unit], sorted(left))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\0" * 4096,
        b"not a table\n",
        b"slide_id,label\ns1,1\ns2,0\n",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"%PDF-1.7\n",
        random.Random(0).randbytes(4096),
        b"PK\x05\x06" + bytes(18),
        b"\x93NUMPY",
        b"\x80\x04N.",
    ],
)
def test_a_file_of_something_else_is_no_format(tmp_path: Path, content: bytes) -> None:
    for name in ("s.h5", "s.pt", "s.npy", "s.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=str(tmp_path / name)):
            detect(tmp_path / name)


def test_a_folder_of_something_else_is_no_format(tmp_path: Path) -> None:
    for folder in ("labels", "features"):
        (tmp_path / folder).mkdir()
    (tmp_path / "x.meta.json").write_text("{")
    (tmp_path / "manifest.csv").write_text("path,sha256\n")
    assert not _is_folder_unit(tmp_path)


def test_readers_start_without_torch_pandas_and_scipy() -> None:
    code = "import sys, asmil.data.sources; sys.exit(str({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("name", foreign_hdf5.WRITERS)
def test_hdf5_is_opened_once_to_open_and_once_to_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = foreign_hdf5.WRITERS[name](tmp_path)
    form = detect(unit).format
    opened: list[str] = []
    values: list[str] = []

    class Counted(h5py.File):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            opened.append(str(args[0]))
            super().__init__(*args, **keywords)

    plain_read = h5py.Dataset.__getitem__

    def counted_read(dataset: h5py.Dataset, *args: Any, **keywords: Any) -> Any:
        values.append(dataset.name)
        return plain_read(dataset, *args, **keywords)

    monkeypatch.setattr(h5py, "File", Counted)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted_read)
    source = form.open(unit, ReadOptions())
    assert opened == [str(unit)]
    assert not [dataset for dataset in values if dataset.endswith(("feat", "features", "feats", "embeddings", "uni"))]
    for header in source.slides:
        opened.clear()
        source.read(header.slide_id)
        assert opened == [str(unit)]


def _is_folder_unit(folder: Path) -> bool:
    try:
        return detect(folder).reason is not None
    except UnknownContentError:
        return False


def _bags_of(source: Source) -> dict[str, SourceBag]:
    ids = [header.slide_id for header in source.slides]
    assert [slide_id for slide_id, count in Counter(ids).items() if count > 1] == []
    return {slide_id: source.read(slide_id) for slide_id in ids}


def _refused_or_as_expected(case: Case) -> bool:
    """Whether some bag was refused; every other one must be what it should be."""
    try:
        source = case.open()
    except DataError:
        return True
    refused: set[str] = set()
    for header in source.slides:
        try:
            bag = source.read(header.slide_id)
        except DataError:
            refused.add(header.slide_id)
        else:
            _assert_same(bag, case.expected.bags[header.slide_id])
            lost = {"split"} if any("splits are not kept" in note for note in source.notes) else set()
            labels = case.expected.labels.get(header.slide_id, {})
            found = source.labels.get(header.slide_id, {})
            assert found == {column: value for column, value in labels.items() if column not in lost}
    ids = {header.slide_id for header in source.slides} | set(source.no_tissue)
    assert ids == {*case.expected.bags, *case.expected.no_tissue}
    assert set(source.no_tissue) == set(case.expected.no_tissue) - refused
    return bool(refused)


def _assert_same(found: SourceBag, expected: SourceBag) -> None:
    assert found.features_ND.dtype == expected.features_ND.dtype
    for one, other in zip(_arrays(found), _arrays(expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_array_equal(one, other)


def _arrays(bag: SourceBag) -> Sequence[np.ndarray | None]:
    return bag.features_ND, bag.coords_N2, bag.instance_labels_N
