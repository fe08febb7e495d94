"""Writers of small files in the exact layouts in which the classic sets circulate, for the tests of their readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from tests.data.foreign import ClassicSet, classic_set, svm_lines, uci_lines, write_prtools


def write_lines(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    """Text with a line end after every line."""
    path.write_bytes((end.join(lines) + end).encode())
    return path


def flat(data: ClassicSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels +1/-1 and bag numbers from 1 of all instances."""
    sizes = [len(bag_ND) for bag_ND in data.bags]
    labels_N = np.repeat([1.0 if label else -1.0 for label in data.labels], sizes)
    return np.concatenate(data.bags), labels_N, np.repeat(np.arange(1, len(sizes) + 1, dtype=np.uint8), sizes)


def write_andrews_mat(path: Path, data: ClassicSet, **changed: Any) -> Path:
    """Andrews' MATLAB file of 2005: features and labels sparse, bag_ids dense uint8."""
    features_ND, labels_N, bags_N = flat(data)
    variables = {
        "features": scipy.sparse.csc_matrix(features_ND),
        "labels": scipy.sparse.csc_matrix(labels_N[None]),
        "bag_ids": bags_N[None],
        "comment": "a set",
    } | changed
    scipy.io.savemat(path, {name: value for name, value in variables.items() if value is not None})
    return path


def write_cell_mat(
    path: Path,
    data: ClassicSet,
    *,
    label_column: Sequence[np.ndarray] | None = None,
    negative: int = 0,
    instance_labels: Sequence[Sequence[int]] | None = None,
) -> Path:
    """A cell with one row per bag: instances (and the label column of RGMIL's files), label, miFV's instance labels."""
    cell = np.empty((len(data.bags), 2 if instance_labels is None else 3), dtype=object)
    for row, (bag_ND, label) in enumerate(zip(data.bags, data.labels, strict=True)):
        cell[row, 0] = bag_ND if label_column is None else np.column_stack([bag_ND, label_column[row]])
        cell[row, 1] = np.array([[1 if label else negative]])
        if instance_labels is not None:
            cell[row, 2] = np.array(instance_labels[row], dtype=np.uint8)[:, None]
    scipy.io.savemat(path, {"data": cell}, do_compression=True)
    return path


def labels_of_instances(data: ClassicSet) -> list[np.ndarray]:
    """The label column of RGMIL's files: per bag, its label on every instance."""
    return [np.full(len(bag_ND), label) for bag_ND, label in zip(data.bags, data.labels, strict=True)]


def csv_lines(data: ClassicSet) -> list[str]:
    """Lines of the headerless CSV: label, bag number from 1, features."""
    return [
        f"{label},{bag},{','.join(f'{value:g}' for value in features_D)}"
        for bag, (label, bag_ND) in enumerate(zip(data.labels, data.bags, strict=True), start=1)
        for features_D in bag_ND
    ]


def comma_lines(data: ClassicSet, *, sparse: bool) -> list[str]:
    """Lines of the fuzzy k-NN toolbox: Bag_<b>+<i>, <set>_data_<b>, label, features as %e with plain zeros."""
    lines = []
    for bag, (label, bag_ND) in enumerate(zip(data.labels, data.bags, strict=True), start=1):
        for instance, features_D in enumerate(bag_ND, start=1):
            values = [f"{value:e}" if value else "0" for value in features_D]
            if sparse:
                values = [f"{index}:{text}" for index, text in enumerate(values, start=1) if text != "0"]
            lines.append(",".join([f"Bag_{bag}+{instance}", f"fox_data_{bag}", str(label), *values]))
    return lines


def write_npy_triple(folder: Path, name: str, data: ClassicSet) -> Path:
    """The three arrays of one set: features float64, labels float64 +1/-1, bag_ids uint8."""
    folder.mkdir(exist_ok=True)
    for part, values in zip(("features", "labels", "bag_ids"), flat(data), strict=True):
        np.save(folder / f"{name}_{part}.npy", values, allow_pickle=False)
    return folder


def _prtools(folder: Path) -> Path:
    write_prtools(folder / "musk.mat", classic_set(), numbered=False)
    return folder / "musk.mat"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "uci-c45": lambda folder: write_lines(folder / "clean.data", uci_lines(classic_set())),
    "andrews-svm": lambda folder: write_lines(folder / "fox.svm", svm_lines(classic_set())),
    "prtools-mat": _prtools,
    "andrews-mat": lambda folder: write_andrews_mat(folder / "musk1norm.mat", classic_set()),
    "cell-mat": lambda folder: write_cell_mat(folder / "fox.mat", classic_set()),
    "classic-csv": lambda folder: write_lines(folder / "elephant.csv", csv_lines(classic_set())),
    "comma-sparse": lambda folder: write_lines(folder / "sparse_fox.data", comma_lines(classic_set(), sparse=True)),
    "npy-triple": lambda folder: write_npy_triple(folder / "MUSK1", "MUSK1", classic_set()),
}
