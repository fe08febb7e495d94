"""Plain readings of the classic sets, for `plain`: text, MATLAB files through SciPy, and three NumPy files."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

__all__ = ["CLASSIC"]

_Slide = tuple[str | None, Callable[[], Mapping[str, np.ndarray]], Any]
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)


def _bags(ids: list[str], features: np.ndarray, labels: Any, truth: np.ndarray | None = None) -> Iterator[_Slide]:
    bags: dict[str, list[int]] = {}
    for row, bag in enumerate(ids):
        bags.setdefault(bag, []).append(row)
    for bag, rows in bags.items():
        arrays = {"features": features[rows]} | ({} if truth is None else {"instance_labels": truth[rows]})
        yield bag, partial(dict, arrays), int(labels[rows[0]] > 0)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("ascii")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _float(text: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no decimal number")
    return float(text)


def _uci(path: Path) -> Iterator[_Slide]:
    rows = [line.split(",") for line in _lines(path) if not line.startswith("classLast")]
    is_third = bool(re.fullmatch(r".*\+\d+", rows[0][0])) and rows[0][2] in ("0", "1")
    features = [[_float(text) for text in (row[3:] if is_third else row[2:-1])] for row in rows]
    labels = [float(row[2 if is_third else -1]) for row in rows]
    yield from _bags([row[1 if is_third else 0].strip() for row in rows], np.array(features), labels)


def _svm(path: Path) -> Iterator[_Slide]:
    lines = [line.split() for line in _lines(path)]
    counts = lines.pop(0) if ":" not in lines[0][0] else None
    pairs = [[pair.split(":") for pair in line[1:]] for line in lines]
    width = int(counts[1]) if counts else max(int(index) for row in pairs for index, _ in row)
    heads = [line[0].split(":") for line in lines]
    yield from _bags([str(int(head[1])) for head in heads], _placed(pairs, width), [int(head[2]) for head in heads])


def _placed(pairs: list[list[list[str]]], width: int) -> np.ndarray:
    features = np.zeros((len(pairs), width))
    for row, found in enumerate(pairs):
        for index, text in found:
            features[row, int(index) - 1] = _float(text)
    return features


def _sparse(path: Path) -> Iterator[_Slide]:
    rows = [line.split(",") for line in _lines(path)]
    pairs = [[pair.split(":") for pair in row[3:]] for row in rows]
    width = max(int(index) for row in pairs for index, _ in row)
    yield from _bags([row[1].strip() for row in rows], _placed(pairs, width), [int(row[2]) for row in rows])


def _csv(path: Path) -> Iterator[_Slide]:
    values = np.array([[_float(text) for text in line.split(",")] for line in _lines(path)])
    yield from _bags([str(int(bag) - 1) for bag in values[:, 1]], values[:, 2:], values[:, 0])


def _full(values: Any) -> np.ndarray:
    array = np.asarray(values.toarray() if scipy.sparse.issparse(values) else values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{array.dtype} values, not real numbers")
    return array.astype(np.float64)


def _from_zero(numbers: np.ndarray) -> list[str]:
    return [str(int(number) - 1) for number in numbers.ravel()]


def _andrews(path: Path) -> Iterator[_Slide]:
    found = scipy.io.loadmat(path, variable_names=("features", "labels", "bag_ids"))
    labels = _full(found["labels"]).ravel()
    yield from _bags(_from_zero(_full(found["bag_ids"])), _full(found["features"]), labels)


def _cell(row: Any) -> dict[str, np.ndarray]:
    return {"features": _full(row[0])}


def _cells(path: Path) -> Iterator[_Slide]:
    for bag, row in enumerate(scipy.io.loadmat(path, variable_names="data")["data"]):
        yield str(bag), partial(_cell, row), int(_full(row[1]).item() > 0)


def _prtools(path: Path) -> Iterator[_Slide]:
    found = scipy.io.loadmat(path, variable_names="x")["x"][0, 0]
    names = [str(name).strip() for name in found["lablist"].ravel()[0].ravel()]
    labels = [names[int(number) - 1] == "positive" for number in found["nlab"].ravel()]
    milbag = found["ident"][0, 0]["milbag"]
    ids = [name.strip() for name in milbag.ravel()] if milbag.dtype.kind == "U" else _from_zero(milbag)
    yield from _bags(ids, _full(found["data"]), labels)


def _triple(path: Path) -> Iterator[_Slide]:
    [name] = [file.name.removesuffix("_bag_ids.npy") for file in path.glob("*_bag_ids.npy")]
    features, labels, bags = (np.load(path / f"{name}_{part}.npy") for part in ("features", "labels", "bag_ids"))
    yield from _bags(_from_zero(bags), features.astype(np.float64), labels.ravel())


CLASSIC: dict[str, Callable[[Path], Iterator[_Slide]]] = {
    "uci-c45": _uci,
    "andrews-svm": _svm,
    "comma-sparse": _sparse,
    "classic-csv": _csv,
    "andrews-mat": _andrews,
    "cell-mat": _cells,
    "prtools-mat": _prtools,
    "npy-triple": _triple,
}
