"""What holds for every format of `FORMATS`, tried on the units that the writers of the test package make."""

from __future__ import annotations

import fnmatch
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from asmil.data.sources import FORMATS, ContentError, ReadOptions, SourceBag, detect
from tests.data import foreign_arrays, foreign_classic, foreign_hdf5, foreign_tensor
from tests.data.reading import read

# By format, or by format and variant with a comma between.
MODULES = (foreign_classic, foreign_hdf5, foreign_tensor, foreign_arrays)
WRITERS = {name: write for module in MODULES for name, write in module.WRITERS.items()}
ONLY_ANSWERED = {"lazyslide-zarr"}  # recognised, and answered with what to do instead

ALL = pytest.mark.parametrize("name", WRITERS)
READ = pytest.mark.parametrize("name", [name for name in WRITERS if name.split(",")[0] not in ONLY_ANSWERED])


def test_every_format_has_a_writer_and_a_name_of_its_own() -> None:
    assert Counter(form.name for form in FORMATS) == Counter({name.split(",")[0] for name in WRITERS})
    assert len(WRITERS) == sum(len(module.WRITERS) for module in MODULES)


@ALL
def test_formats_exclude_each_other(tmp_path: Path, name: str) -> None:
    unit = WRITERS[name](tmp_path)
    kind = "folder" if unit.is_dir() else "file"
    accepted = [form.name for form in FORMATS if form.unit == kind and form.detect(unit) is not None]
    assert accepted == [name.split(",")[0]]


@ALL
def test_detection_does_not_depend_on_the_name(tmp_path: Path, name: str) -> None:
    unit = WRITERS[name](tmp_path)
    reason = detect(unit).reason
    assert reason
    renamed = unit.rename(unit.with_name("another.name"))
    assert detect(renamed).format.name == name.split(",")[0]


@ALL
def test_files_beside_a_unit_are_known_sidecars(tmp_path: Path, name: str) -> None:
    unit = WRITERS[name](tmp_path)
    patterns = detect(unit).format.sidecars
    for path in unit.parent.iterdir():
        assert path == unit or any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


@READ
def test_headers_are_kept_and_reading_is_repeatable_in_any_order(tmp_path: Path, name: str) -> None:
    unit = WRITERS[name](tmp_path)
    _, source, bags = read(unit)
    assert bags or source.no_tissue
    assert len({header.slide_id for header in source.slides}) == len(source.slides)
    again = {header.slide_id: source.read(header.slide_id) for header in reversed(source.slides)}
    for bag in bags:
        _assert_same(SourceBag(bag.features_ND, bag.coords_N2, bag.instance_labels_N), again[bag.bag_id])
        assert bag.features_ND.dtype.kind == "f"
        assert bag.features_ND.dtype.isnative
        assert bag.features_ND.shape[0] > 0
    reopened = detect(unit).format.open(unit, ReadOptions())
    assert (reopened.slides, reopened.facts, reopened.no_tissue) == (source.slides, source.facts, source.no_tissue)


@pytest.mark.parametrize("name", [name for name in WRITERS if name.split(",")[0] in ONLY_ANSWERED])
def test_what_is_only_recognised_says_why(tmp_path: Path, name: str) -> None:
    unit = WRITERS[name](tmp_path)
    with pytest.raises(ContentError, match=str(unit)):
        detect(unit).format.open(unit, ReadOptions())


def _assert_same(left: SourceBag, right: SourceBag) -> None:
    np.testing.assert_array_equal(left.features_ND, right.features_ND)
    for one, other in ((left.coords_N2, right.coords_N2), (left.instance_labels_N, right.instance_labels_N)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            np.testing.assert_array_equal(one, other)


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
