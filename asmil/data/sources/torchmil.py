"""torchmil's parallel folders: features, labels, instance labels and coordinates, one file per bag in each.

The files are `.npy`, or `.h5` with the keys `features`, `labels` and `coords`. In its HDF5 mode torchmil still opens
the instance labels with `np.load`, so there are `.npy` files under the names of HDF5 files: every file is read as what
it is. The hosted sets add `splits.csv` (`bag_name`, `split`), which becomes the label column `split`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from asmil.data.arrays import coord_dtype_of
from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, LabelValue, ReadOptions, SlideHeader, Source, SourceBag, UnitKind
from asmil.data.sources.csv_files import csv_header, csv_rows
from asmil.data.sources.hdf5 import check_complete, is_hdf5, numeric_dataset, open_hdf5, read_all
from asmil.data.sources.many_bags import bag_headers, first_readable
from asmil.data.sources.matrices import as_matrix, check_coords, feature_shape
from asmil.data.sources.numpy_files import NpyHeader, npy_header, read_npy
from asmil.errors import DataError

__all__ = ["TorchmilFolders"]

_SUFFIXES = (".npy", ".h5")
_SPLITS = "splits.csv"
_SPLIT_COLUMNS = ("bag_name", "split")
_MAX_LABELS = 64


@dataclass(frozen=True)
class _Folders:
    """Where the parts lie.

    Attributes:
        features: Folder of each feature set, by its name.
        labels: Folder of the bag labels.
        instance_labels: Folder of the instance labels, if there is one.
        coords: Folder of the coordinates, if there is one.
        splits: The table of splits, if there is one.
    """

    features: Mapping[str, Path]
    labels: Path
    instance_labels: Path | None
    coords: Path | None
    splits: Path | None


class TorchmilFolders:
    """Reader of a folder in torchmil's layout."""

    name = "torchmil"
    layout = "torchmil folder: features (or features_*), labels, inst_labels or patch_labels, coords; one file per bag"
    dtype: FeatureDtype = "float16"
    unit: UnitKind = "folder"
    sidecars: tuple[str, ...] = (_SPLITS,)
    options: frozenset[str] = frozenset({"features"})

    def detect(self, path: Path) -> str | None:
        """Folders of features and of labels, with a bag that is in both."""
        folders = _folders(path)
        if folders is None:
            return None
        name, first = next(iter(folders.features.items()))
        bags = _bags(first)
        if not any(_file(folders.labels, bag) for bag in bags):
            return None
        more = f" and {len(folders.features) - 1} more feature sets" if len(folders.features) > 1 else ""
        found = first_readable(bags, lambda bag: _header(first, bag, "features"))
        return f"a folder with {name}/ and labels/, a file per bag in each, the first {found}{more}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per file of features, in the order of the names."""
        folders = _folders(path)
        assert folders is not None, "detect() has seen it"
        features = _chosen(path, folders, options.features)
        notes: list[str] = []
        labels: dict[str, dict[str, LabelValue]] = {}

        def header_of(bag: str) -> SlideHeader | None:
            try:
                labels[bag] = _label(folders.labels, bag)  # first, so that bags of damaged features have theirs
            except DataError as problem:
                notes.append(f"note: {problem}")
                raise
            return _bag_header(folders, features, bag, notes)

        found = bag_headers(_bags(features), header_of)
        labels = {header.slide_id: labels.get(header.slide_id, {}) for header in found.slides}
        notes += _add_splits(folders.splits, labels)
        with_truth = frozenset(header.slide_id for header in found.slides if header.has_instance_labels)
        return Source(
            slides=found.slides,
            read=found.guarded(partial(_read, folders, features, with_truth)),
            no_tissue=found.no_tissue,
            labels={bag: row for bag, row in labels.items() if row},
            notes=tuple(dict.fromkeys(notes)),
        )


# --- the folders ---


def _folders(path: Path) -> _Folders | None:
    labels = path / "labels"
    if not labels.is_dir():
        return None
    sets = {item.name: item for item in sorted(path.glob("features*")) if item.is_dir()}
    nested = sets.pop("features", None)
    if nested is not None:
        inside = {item.name: item for item in sorted(nested.iterdir()) if item.is_dir() and _bags(item)}
        sets |= inside or {"features": nested}
    sets = {name: folder for name, folder in sets.items() if _bags(folder)}
    if not sets:
        return None
    instance_labels = (path / "inst_labels", path / "patch_labels")
    splits = path / _SPLITS
    if not splits.is_file() and set(_SPLIT_COLUMNS) <= set(csv_header(path.parent / _SPLITS)):
        splits = path.parent / _SPLITS  # of the hosted sets, which have a folder per size of tiles
    return _Folders(
        features=sets,
        labels=labels,
        instance_labels=next((folder for folder in instance_labels if folder.is_dir()), None),
        coords=path / "coords" if (path / "coords").is_dir() else None,
        splits=splits if splits.is_file() else None,
    )


def _bags(folder: Path) -> list[str]:
    files = (file for file in folder.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    return sorted({file.stem for file in files})


def _chosen(path: Path, folders: _Folders, wanted: str | None) -> Path:
    names = {name.removeprefix("features_"): folder for name, folder in folders.features.items()}
    listed = ", ".join(names)
    if wanted is None and len(names) > 1:
        raise ContentError(f"{path}: holds {len(names)} feature sets: {listed}; say which with --features NAME")
    if wanted is None:
        return next(iter(names.values()))
    if wanted.removeprefix("features_") not in names:
        raise ContentError(f"{path}: holds no features {wanted!r}; it has {listed}")
    return names[wanted.removeprefix("features_")]


# --- one array, whatever its file is ---


def _file(folder: Path | None, bag: str) -> Path | None:
    candidates = [] if folder is None else [folder / f"{bag}{suffix}" for suffix in _SUFFIXES]
    found = [file for file in candidates if file.is_file()]
    if len(found) > 1:
        raise ContentError(f"{found[0]} and {found[1]} are the same bag; keep one of them")
    return found[0] if found else None


def _header(folder: Path | None, bag: str, key: str) -> NpyHeader | None:
    file = _file(folder, bag)
    if file is None:
        return None
    if is_hdf5(file):
        with open_hdf5(file) as opened:
            dataset = numeric_dataset(opened, _key(opened, key, file), file)
            return NpyHeader(dataset.shape, dataset.dtype)
    header = npy_header(file)
    if header is None:
        raise DataError(f"{file}: neither a .npy file nor HDF5; it is cut or damaged: make or copy it again")
    return header


def _array(folder: Path, bag: str, key: str) -> np.ndarray:
    file = _file(folder, bag)
    if file is None:
        raise DataError(f"{folder / bag}: its file is gone; the folder must not change during the conversion")
    if not is_hdf5(file):
        return read_npy(file)
    with open_hdf5(file) as opened:
        dataset = numeric_dataset(opened, _key(opened, key, file), file)
        check_complete(dataset, file)
        return read_all(dataset)


def _key(opened: Mapping[str, object], key: str, file: Path) -> str:
    if key not in opened:
        raise ContentError(f"{file}: no dataset {key}; it has {', '.join(sorted(opened)[:6])}")
    return key


# --- one bag ---


def _bag_header(folders: _Folders, features: Path, bag: str, notes: list[str]) -> SlideHeader | None:
    header = _header(features, bag, "features")
    assert header is not None, "the bag was listed from this folder"
    shape = feature_shape(f"{features / bag}: features", header.shape, header.dtype.name)
    if shape.num_instances == 0:
        return None
    coords = _header(folders.coords, bag, "coords")
    if coords is not None:
        check_coords(f"{folders.coords}/{bag}: coords", coords.shape, coords.dtype, shape.num_instances)
    truth = _header(folders.instance_labels, bag, "inst_labels")
    one_each = truth is not None and truth.shape in ((shape.num_instances,), (shape.num_instances, 1))
    if truth is not None and not one_each:
        if truth.shape[:1] != (shape.num_instances,):
            raise ContentError(
                f"{folders.instance_labels}/{bag}: instance labels have shape {list(truth.shape)}, expected one for "
                f"each of {shape.num_instances} rows of features"
            )
        notes.append(f"note: instance labels with {list(truth.shape[1:])} values each are not kept; one number each is")
    return SlideHeader(bag, *shape, None if coords is None else coord_dtype_of(coords), one_each)


def _read(folders: _Folders, features: Path, with_truth: frozenset[str], bag: str) -> SourceBag:
    features_ND = as_matrix(_array(features, bag, "features"))
    coords_N2 = None
    if folders.coords is not None and _file(folders.coords, bag) is not None:
        coords_N2 = _array(folders.coords, bag, "coords")
    if folders.instance_labels is None or bag not in with_truth:
        return SourceBag(features_ND, coords_N2)
    truth_N = _array(folders.instance_labels, bag, "inst_labels").reshape(-1)
    whole_N = truth_N.astype(np.int64)
    if (whole_N != truth_N).any():
        raise ContentError(f"{folders.instance_labels}/{bag}: instance labels are not whole numbers")
    return SourceBag(features_ND, coords_N2, whole_N)


def _label(folder: Path, bag: str) -> dict[str, LabelValue]:
    """The label, whatever its shape: one number is `label`, several are `label_0`, `label_1` and so on."""
    header = _header(folder, bag, "labels")
    if header is None:
        return {}
    if not 1 <= int(np.prod(header.shape)) <= _MAX_LABELS:
        raise ContentError(
            f"{folder}/{bag}: labels have shape {list(header.shape)}, expected 1 to {_MAX_LABELS} numbers"
        )
    values = _array(folder, bag, "labels").ravel().tolist()
    plain = [int(value) if float(value).is_integer() else float(value) for value in values]
    if len(plain) == 1:
        return {"label": plain[0]}
    return {f"label_{position}": value for position, value in enumerate(plain)}


# --- the table of splits ---


def _add_splits(path: Path | None, labels: dict[str, dict[str, LabelValue]]) -> list[str]:
    if path is None:
        return []
    splits: dict[str, str] = {}
    for row in csv_rows(path, *_SPLIT_COLUMNS):
        bag, split = row["bag_name"], row["split"]
        if not (bag and split):
            continue
        if splits.setdefault(bag, split) != split:
            raise ContentError(f"{path}: bag {bag!r} is in both {splits[bag]!r} and {split!r}; keep one of the rows")
    without = [bag for bag in labels if bag not in splits]
    if without:
        return [f"note: {path} has no row for {len(without)} bags, such as {without[0]!r}; its splits are not kept"]
    for bag, columns in labels.items():
        columns["split"] = splits[bag]
    return []
