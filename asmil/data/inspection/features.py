"""Figures of the features themselves, from a sample of bags read one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from torch import Tensor, uint8

from asmil.data.store import BagStore

__all__ = ["DependenceFigures", "FeatureFigures", "draw_bags", "is_affinely_dependent", "scan_features"]

_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class DependenceFigures:
    """How many bags have affinely dependent instances.

    Where they are, more than one set of attention weights gives the same bag feature.

    Attributes:
        by_count: Bags of the whole store with more than D + 1 instances; they are always dependent.
        checked: Sampled bags with at most D + 1 instances.
        dependent: How many of those are dependent.
        share: Share of all bags; those with at most D + 1 instances count as the sample of them. None if there are
            such bags and none is in the sample.
        is_estimate: Some bags with at most D + 1 instances are not in the sample.
    """

    by_count: int
    checked: int
    dependent: int
    share: float | None
    is_estimate: bool


@dataclass(frozen=True)
class FeatureFigures:
    """What the features of the sampled bags are like.

    Attributes:
        bags: Bags read.
        instances: Their instances.
        mean: Mean of all values.
        sd: Their standard deviation, over all values at once.
        largest: Largest magnitude.
        zero_share: Share of values that are exactly 0.
        constant_columns: Columns that never change in the sample.
        bags_with_repeated_rows: Bags in which the same row of bytes occurs more than once.
        repeated_rows: Rows of those bags beyond the first of their kind.
        bags_with_zero_rows: Bags with a row that is 0 throughout.
        zero_rows: Their number.
        is_complete: All bags of the store were read.
        dependence: Affinely dependent bags.
    """

    bags: int
    instances: int
    mean: float
    sd: float
    largest: float
    zero_share: float
    constant_columns: tuple[int, ...]
    bags_with_repeated_rows: tuple[str, ...]
    repeated_rows: int
    bags_with_zero_rows: tuple[str, ...]
    zero_rows: int
    is_complete: bool
    dependence: DependenceFigures


def draw_bags(slide_ids: Sequence[str], sample: int, seed: int = 0) -> tuple[str, ...]:
    """Slides drawn without replacement, in stored order; all of them if there are no more than asked for."""
    if sample >= len(slide_ids):
        return tuple(slide_ids)
    chosen = np.sort(np.random.default_rng(seed).choice(len(slide_ids), sample, replace=False))
    return tuple(slide_ids[position] for position in chosen)


def is_affinely_dependent(features_ND: np.ndarray) -> bool:
    """Whether some affine combination of the other instances gives an instance.

    Instances h_1 … h_N are affinely independent if the N - 1 differences h_n - h_1 have rank N - 1. The rank is that of
    the differences in float64: singular values above the largest one times max(N - 1, D) times 2.2e-16 count.

    Args:
        features_ND: The features of one bag.

    Example:
        >>> triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> is_affinely_dependent(triangle), is_affinely_dependent(np.vstack([triangle, [[1.0, 1.0]]]))
        (False, True)
    """
    num_instances, num_features = features_ND.shape
    if num_instances == 1:
        return False
    if num_instances > num_features + 1:
        return True
    differences_ND = features_ND[1:].astype(np.float64) - features_ND[0]
    if _is_surely_independent(differences_ND):
        return False
    rank = int(np.linalg.matrix_rank(differences_ND))
    return rank < len(differences_ND)


def _is_surely_independent(rows_ND: np.ndarray) -> bool:
    """Whether no singular value comes near the limit of the rank; a tenth of the work of finding them all.

    The Gram matrix less 1e-8 of its largest entry stays positive definite only if all singular values are above 1e-4 of
    the longest row. The rounding errors of product and factor are below 1e-9 of that entry for rows of a few thousand.
    """
    gram_NN = rows_ND @ rows_ND.T
    gram_NN[np.diag_indices_from(gram_NN)] -= 1e-8 * gram_NN.diagonal().max()
    try:
        np.linalg.cholesky(gram_NN)
    except np.linalg.LinAlgError:
        return False
    return True


def scan_features(store: BagStore, slide_ids: Iterable[str]) -> FeatureFigures:
    """Read slides one by one and sum up their features; no more than one is in memory.

    Args:
        store: The store.
        slide_ids: Different slides, at least one.

    Raises:
        IntegrityError: A bag is damaged.
    """
    moments = _Moments(store.info.num_features)
    repeated: dict[str, int] = {}
    zeros: dict[str, int] = {}
    bags = checked = dependent = 0
    for slide_id in slide_ids:
        features_ND = store.read(slide_id).features_ND
        bags += 1
        moments.add(features_ND)
        repeated[slide_id] = _repeated_rows(features_ND)
        zeros[slide_id] = int((features_ND == 0).all(dim=1).sum())
        if len(features_ND) <= store.info.num_features + 1:
            checked += 1
            dependent += repeated[slide_id] > 0 or is_affinely_dependent(features_ND.double().numpy())
    return FeatureFigures(
        bags=bags,
        instances=moments.instances,
        mean=moments.mean,
        sd=moments.sd,
        largest=float(np.maximum(-moments.low_D, moments.high_D).max()),
        zero_share=moments.zeros / moments.values,
        constant_columns=tuple(np.flatnonzero(moments.low_D == moments.high_D).tolist()),
        bags_with_repeated_rows=tuple(slide_id for slide_id, count in repeated.items() if count),
        repeated_rows=sum(repeated.values()),
        bags_with_zero_rows=tuple(slide_id for slide_id, count in zeros.items() if count),
        zero_rows=sum(zeros.values()),
        is_complete=bags == len(store.slide_ids),
        dependence=_dependence(store, checked, dependent),
    )


def _dependence(store: BagStore, checked: int, dependent: int) -> DependenceFigures:
    lengths_B = np.array([store.length(slide_id) for slide_id in store.slide_ids])
    by_count = int((lengths_B > store.info.num_features + 1).sum())
    small = len(lengths_B) - by_count
    estimate = small * dependent / checked if checked else 0.0
    share = (by_count + estimate) / len(lengths_B) if checked or not small else None
    return DependenceFigures(by_count, checked, dependent, share, is_estimate=checked < small)


def _repeated_rows(features_ND: Tensor) -> int:
    rows = features_ND.view(uint8).numpy()
    return len(rows) - len({xxhash.xxh3_128_digest(row.data) for row in rows})


class _Moments:
    """Running mean, squared deviations, extremes and zeros, joined piece by piece without cancellation."""

    def __init__(self, num_features: int) -> None:
        self.instances = self.values = self.zeros = 0
        self.mean = self._deviations = 0.0
        self.low_D = np.full(num_features, np.inf)
        self.high_D = np.full(num_features, -np.inf)

    @property
    def sd(self) -> float:
        return math.sqrt(self._deviations / self.values)

    def add(self, features_ND: Tensor) -> None:
        for start in range(0, len(features_ND), _CHUNK_ROWS):
            self._add(features_ND[start : start + _CHUNK_ROWS].double().numpy())

    def _add(self, values_RD: np.ndarray) -> None:
        count, mean = values_RD.size, float(values_RD.mean())
        shift, total = mean - self.mean, self.values + count
        self._deviations += float(((values_RD - mean) ** 2).sum()) + shift**2 * self.values * count / total
        self.mean += shift * count / total
        self.instances += len(values_RD)
        self.values = total
        self.zeros += int((values_RD == 0).sum())
        np.minimum(self.low_D, values_RD.min(axis=0), out=self.low_D)
        np.maximum(self.high_D, values_RD.max(axis=0), out=self.high_D)
