"""Three NumPy files per classic set: `<SET>_features.npy`, `<SET>_labels.npy`, `<SET>_bag_ids.npy`.

They are Andrews' MATLAB variables written out: labels +1 and -1 and bag numbers from 1, one per instance. Which files
belong together is told by their names, since nothing in them says so; whether they do, by shapes and dtypes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.andrews_mat import signed_table
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import check_table_size
from asmil.data.sources.numpy_files import NpyHeader, npy_header, read_npy
from asmil.errors import DataError

__all__ = ["NpyTriple"]

_PARTS = ("features", "labels", "bag_ids")


class NpyTriple:
    """Reader of a folder with the three files of one set, or of several sets of which the user names one."""

    name = "npy-triple"
    layout = "folder with <SET>_features.npy, <SET>_labels.npy and <SET>_bag_ids.npy"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "folder"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column", "features"})

    def detect(self, path: Path) -> str | None:
        """At least one set with labels and bag_ids of rank 1 and features of rank 2."""
        sets = _sets(path)
        complete = [name for name, parts in sets.items() if len(parts) == len(_PARTS)]
        for name, parts in sets.items():
            missing = [part for part in _PARTS if part not in parts]
            if not complete and missing == ["features"]:
                raise DataError(
                    f"{path}: {name}_labels.npy and {name}_bag_ids.npy are there, {name}_features.npy is not; copy it "
                    "too (copies of this kind leave out files over 4 MB)"
                )
        if not complete or _ranks(path, complete[0]) != (2, 1, 1):
            return None
        shown = ", ".join(f"{complete[0]}_{part}.npy" for part in _PARTS)
        more = f" and {len(complete) - 1} more sets" if len(complete) > 1 else ""
        return f"folder with {shown}{more}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per bag number; ids run from 0, as in the `.svm` copies of the same sets."""
        name = _chosen(path, options.features)
        files = [_file(path, name, part) for part in _PARTS]
        for file in files:
            check_table_size(file, 1, math.prod(_header(file).shape))
        features_ND, labels_N, bags_N = (read_npy(file) for file in files)
        return signed_table(path, features_ND.astype(np.float64), labels_N.ravel(), bags_N.ravel(), options)


def _sets(path: Path) -> dict[str, list[str]]:
    """The parts that exist of each set."""
    sets: dict[str, list[str]] = {}
    for part in _PARTS:
        for file in sorted(path.glob(f"*_{part}.npy")):
            sets.setdefault(file.name.removesuffix(f"_{part}.npy"), []).append(part)
    return sets


def _chosen(path: Path, wanted: str | None) -> str:
    complete = sorted(name for name, parts in _sets(path).items() if len(parts) == len(_PARTS))
    listed = ", ".join(complete)
    if wanted is None and len(complete) > 1:
        raise DataError(f"{path}: holds the sets {listed}; a store is made from one: name it with --features SET")
    if wanted is not None and wanted not in complete:
        raise DataError(f"{path}: --features {wanted!r} is none of the sets {listed}; name one of them")
    return wanted or complete[0]


def _file(path: Path, name: str, part: str) -> Path:
    return path / f"{name}_{part}.npy"


def _ranks(path: Path, name: str) -> tuple[int, ...]:
    return tuple(len(_header(_file(path, name, part)).shape) for part in _PARTS)


def _header(file: Path) -> NpyHeader:
    header = npy_header(file)
    if header is None:
        raise DataError(f"{file}: not a .npy file; get an undamaged copy")
    return header
