"""The PRTools / MIL-toolbox `.mat` format (Tax, 2013) of the classic sets.

A MATLAB v5 struct `x`: `data` [N, D], `nlab` (1-based index into the class names `lablist{1}`), `ident.milbag` = bag of
each row: blank-padded names, or numbers from 1. Which set a file holds is told by its content only: copies circulate
with the names of MUSK1 and MUSK2 swapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, ids_from_zero, open_classic
from asmil.data.sources.matlab import damage_as_data_error, dense, matlab_variables, read_matlab
from asmil.errors import DataError

__all__ = ["PrtoolsMat"]

_FIELDS = ("data", "nlab", "lablist", "ident")


class PrtoolsMat:
    """Reader of PRTools datasets in MATLAB v5 files."""

    name = "prtools-mat"
    layout = "PRTools .mat: MATLAB v5 struct x with data, nlab, lablist, ident.milbag"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A MATLAB v5 file whose variable `x` is a 1x1 struct or object."""
        shape, kind = matlab_variables(path).get("x", ((), ""))
        if shape != (1, 1) or kind not in ("struct", "object"):
            return None
        return f"MATLAB v5 file with a 1x1 {kind} x"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per `milbag`; numbered bags get ids from 0, as in the `.svm` copies of the same sets."""
        with damage_as_data_error(path):
            struct = _load(path)
            features_ND = dense(path, "x.data", struct["data"])
            bag_ids, notes = _bag_ids(path, struct)
            labels_N = _labels(path, struct)
            if features_ND.ndim != 2 or not len(features_ND) == len(bag_ids) == len(labels_N):
                raise DataError(
                    f"{path}: x.data {features_ND.shape}, x.nlab {labels_N.shape} and {len(bag_ids)} x.ident.milbag "
                    "disagree on the number of instances; get an undamaged copy"
                )
            title = str(np.asarray(struct["name"]).ravel()[0]) if "name" in struct and np.size(struct["name"]) else ""
            named = (f"the file calls itself {title!r}",) if title else ()
            return open_classic(path, InstanceTable(bag_ids, labels_N, features_ND), options, (*named, *notes))


def _load(path: Path) -> dict[str, Any]:
    cell = read_matlab(path, ("x",))["x"][0, 0]
    struct = {name: cell[name] for name in cell.dtype.names or ()}
    missing = [name for name in _FIELDS if name not in struct]
    if missing:
        raise DataError(
            f"{path}: struct x has no field {', '.join(missing)}, expected {', '.join(_FIELDS)}; not a PRTools dataset"
        )
    return struct


def _labels(path: Path, struct: dict[str, Any]) -> np.ndarray:
    names = [str(name).strip() for name in np.asarray(struct["lablist"]).ravel()[0].ravel()]
    if sorted(names) != ["negative", "positive"]:
        raise DataError(f"{path}: x.lablist names the classes {names}, expected negative and positive")
    nlab_N = np.asarray(struct["nlab"]).ravel()
    if not np.isin(nlab_N, (1, 2)).all():
        raise DataError(f"{path}: x.nlab holds {np.unique(nlab_N).tolist()}, expected 1 and 2; get an undamaged copy")
    positive = 1 + names.index("positive")
    return np.array(nlab_N == positive, dtype=np.int64)


def _bag_ids(path: Path, struct: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    ident = np.asarray(struct["ident"])
    if ident.dtype.names is None or "milbag" not in ident.dtype.names:
        raise DataError(f"{path}: x.ident has no field milbag, so the bags are unknown; get a MIL-toolbox file")
    milbag_N = ident[0, 0]["milbag"]
    if milbag_N.dtype.kind == "U":
        return [name.strip() for name in milbag_N.ravel().tolist()], ()
    return ids_from_zero(path, dense(path, "x.ident.milbag", milbag_N).ravel())
