"""Cutting groups into parts: stratified, deterministic, and never a group in two parts.

A cut assigns whole groups (patients). The stratum of a group is the largest stratum of its bags: a patient with one
positive slide counts as positive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from sklearn.model_selection import StratifiedKFold

from asmil.data.labels import first_of
from asmil.errors import DataError

__all__ = ["group_strata", "official_parts", "stratified_folds", "stratified_holdout"]

OFFICIAL_PARTS = ("train", "val", "test")


def group_strata(groups: Sequence[str], strata: Sequence[Hashable]) -> dict[str, Hashable]:
    """The stratum of each group, in order of first appearance.

    Args:
        groups: Group of each bag.
        strata: Stratum of each bag; strata of one group must be comparable.

    Example:
        >>> group_strata(["p", "q", "p"], [0, 0, 1])
        {'p': 1, 'q': 0}
    """
    found: dict[str, Any] = {}
    for group, stratum in zip(groups, strata, strict=True):
        found[group] = max(found[group], stratum) if group in found else stratum
    return found


def stratified_folds(strata: Mapping[str, Hashable], num_folds: int, *, seed: int, what: str) -> list[list[str]]:
    """Cut groups into folds: scikit-learn's shuffled `StratifiedKFold` over groups in order of first appearance.

    Args:
        strata: Stratum of each group.
        num_folds: Number of folds.
        seed: Seed of the shuffle.
        what: What is cut, for error messages.

    Returns:
        The groups of each fold.

    Raises:
        DataError: A stratum has fewer groups than there are folds.
    """
    _check_members(strata, num_folds, f"{what} into {num_folds} folds")
    groups = list(strata)
    codes = {stratum: code for code, stratum in enumerate(dict.fromkeys(strata.values()))}
    labels = np.array([codes[stratum] for stratum in strata.values()])
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed % 2**32).split(np.zeros(len(groups)), labels)
    return [[groups[position] for position in held_out] for _, held_out in folds]


def stratified_holdout(
    strata: Mapping[str, Hashable], share: float, *, seed: str, what: str, min_members: int
) -> list[str]:
    """Hold out a share of the groups of each stratum.

    A stratum of at least two groups always gives at least one group and keeps at least one; a stratum of one group
    keeps it. Which groups are held out is a function of `seed` and of the groups' names.

    Args:
        strata: Stratum of each group.
        share: Share to hold out, between 0 and 1.
        seed: Seed, as text.
        what: What is cut, for error messages.
        min_members: Groups that every stratum must have.

    Returns:
        The groups held out, in the order given.

    Raises:
        DataError: A stratum has too few groups, or nothing could be held out.
    """
    _check_members(strata, min_members, f"{what} with a share of {share:g} held out")
    held_out: set[str] = set()
    for stratum in dict.fromkeys(strata.values()):
        members = [group for group, its_stratum in strata.items() if its_stratum == stratum]
        members.sort(key=lambda group: xxhash.xxh3_64_intdigest(f"{seed}/{group}".encode()))
        count = min(max(round(len(members) * share), 1), len(members) - 1)
        held_out.update(members[:count])
    if not held_out:
        raise DataError(f"{what}: {len(strata)} groups, one per class, leave nothing to hold out; use more data")
    return [group for group in strata if group in held_out]


def official_parts(official: pd.Series, groups: Sequence[str]) -> dict[str, str]:
    """The part of an official split that each group belongs to.

    Args:
        official: Value `train`, `val` or `test` for each bag; index = bag id.
        groups: Group of each bag.

    Raises:
        DataError: Other values, no training or no test part, or a group in two parts.
    """
    values = ["" if pd.isna(value) else str(value) for value in official]
    wrong = [
        f"{bag_id}={value!r}"
        for bag_id, value in zip(official.index, values, strict=True)
        if value not in OFFICIAL_PARTS
    ]
    if wrong:
        raise DataError(
            f"split column {official.name!r}: {len(wrong)} bags have a value other than {', '.join(OFFICIAL_PARTS)}: "
            f"{first_of(wrong)}; correct the label table"
        )
    for part in ("train", "test"):
        if part not in values:
            raise DataError(f"split column {official.name!r}: no bag is marked {part!r}; correct the label table")
    parts: dict[str, set[str]] = {}
    for group, value in zip(groups, values, strict=True):
        parts.setdefault(group, set()).add(value)
    torn = [f"{group} ({', '.join(sorted(found))})" for group, found in parts.items() if len(found) > 1]
    if torn:
        raise DataError(
            f"split column {official.name!r}: {len(torn)} groups lie in more than one part: {first_of(torn)}; "
            "a patient's slides must share a part: correct the label table"
        )
    return {group: found.pop() for group, found in parts.items()}


def _check_members(strata: Mapping[str, Hashable], least: int, what: str) -> None:
    for stratum, count in Counter(strata.values()).items():
        if count < least:
            raise DataError(
                f"cannot cut {what}: class {stratum!r} has {count} groups, expected at least {least}; "
                "use fewer folds, merge rare classes or leave them out"
            )
