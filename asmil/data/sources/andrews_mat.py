"""The MATLAB format of Andrews et al. (2005): `features` and `labels` sparse, `bag_ids` dense.

Labels are +1 and -1 per instance. A sparse matrix does not store zeros, so a label 0 is one that was lost. The MUSK
file of this family is standardised over all instances.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asmil.data.schema import FeatureDtype
from asmil.data.sources.base import ContentError, ReadOptions, Source, UnitKind
from asmil.data.sources.classic import InstanceTable, class_labels, ids_from_zero, open_classic
from asmil.data.sources.matlab import damage_as_data_error, dense, matlab_variables, read_matlab

__all__ = ["SIGNED_LABELS", "AndrewsMat", "signed_table"]

SIGNED_LABELS = ((-1, 1),)
_NAMES = ("features", "labels", "bag_ids")


class AndrewsMat:
    """Reader of Andrews' MATLAB files."""

    name = "andrews-mat"
    layout = "Andrews .mat: MATLAB v5 with features (instances x features), labels +1/-1 and bag_ids from 1"
    dtype: FeatureDtype = "float32"
    unit: UnitKind = "file"
    sidecars: tuple[str, ...] = ()
    options: frozenset[str] = frozenset({"drop_last_column"})

    def detect(self, path: Path) -> str | None:
        """A MATLAB v5 file with the variables features, labels and bag_ids, and no PRTools struct `x`."""
        variables = matlab_variables(path)
        if "x" in variables or any(name not in variables for name in _NAMES):
            return None
        shown = ", ".join(f"{name} {variables[name].kind} {list(variables[name].shape)}" for name in _NAMES)
        return f"MATLAB v5 file with {shown}"

    def open(self, path: Path, options: ReadOptions) -> Source:
        """One bag per bag number; ids run from 0, as in the `.svm` copies of the same sets."""
        with damage_as_data_error(path):
            values = read_matlab(path, _NAMES)
            features_ND = dense(path, "features", values["features"])
            labels_N, bags_N = (dense(path, name, values[name]).ravel() for name in ("labels", "bag_ids"))
            return signed_table(path, features_ND, labels_N, bags_N, options)


def signed_table(
    path: Path, features_ND: np.ndarray, labels_N: np.ndarray, bags_N: np.ndarray, options: ReadOptions
) -> Source:
    """The bags of three arrays with one row per instance.

    Args:
        path: The file, to be named in errors.
        features_ND: Features.
        labels_N: +1 or -1.
        bags_N: Bag numbers from 1.
        options: See `open_classic`.

    Raises:
        DataError: Lengths that differ, other labels, or bag numbers with gaps.
    """
    if features_ND.ndim != 2 or not len(features_ND) == len(labels_N) == len(bags_N):
        raise ContentError(
            f"{path}: features {features_ND.shape}, {len(labels_N)} labels and {len(bags_N)} bag_ids disagree on the "
            "number of instances; get an undamaged copy"
        )
    classes_N = class_labels(path, "labels", labels_N, SIGNED_LABELS)
    bag_ids, notes = ids_from_zero(path, bags_N)
    return open_classic(path, InstanceTable(bag_ids, classes_N, features_ND), options, notes)
