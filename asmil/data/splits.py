"""Splits by group: made once, checked, saved, reused; the test part is reached through `asmil.data.sealed` only."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import xxhash
from pydantic import ValidationError

from asmil.config import StrictModel, content_hash
from asmil.data.cohort import Cohort
from asmil.data.config import ProtocolConfig
from asmil.data.cuts import group_strata, official_parts, stratified_folds, stratified_holdout
from asmil.data.labels import first_of
from asmil.data.schema import SPLITS_FILE
from asmil.data.tables.given import GivenSplits
from asmil.errors import DataError, IntegrityError
from asmil.storage import publish_json

__all__ = ["DevelopmentSplit", "InnerSplit", "SplitPlan", "load_or_make_splits", "make_splits", "official_rules"]


@dataclass(frozen=True)
class InnerSplit:
    """One cut of an outer training part.

    Attributes:
        train: Bags to train on, in cohort order.
        validation: Bags to select epochs and configurations on, in cohort order.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class DevelopmentSplit:
    """Everything of one outer fold except its test part.

    Attributes:
        repeat: Repetition of the scheme.
        fold: Outer fold.
        bag_ids: The outer training part, in cohort order.
        inner: Its cuts: one holdout, or one per inner fold.
    """

    repeat: int
    fold: int
    bag_ids: tuple[str, ...]
    inner: tuple[InnerSplit, ...]


class _Cut(StrictModel):
    repeat: int
    fold: int
    test: tuple[str, ...]
    validations: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...] = ()


class _Content(StrictModel):
    format: Literal["asmil-splits/1"] = "asmil-splits/1"
    dataset_id: str
    protocol: dict[str, Any]
    groups: dict[str, str]
    cuts: tuple[_Cut, ...]

    def tree(self) -> dict[str, Any]:
        """Plain data; a cut names what it leaves out only if it leaves something out."""
        tree = self.model_dump(mode="json")
        for cut in tree["cuts"]:
            if not cut["left_out"]:
                del cut["left_out"]
        return tree


class SplitPlan:
    """All outer folds of an experiment. Holds test ids: workers get a `DevelopmentSplit` instead.

    Args:
        content: The checked content of the split file.
    """

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._cuts = {(cut.repeat, cut.fold): cut for cut in content.cuts}
        self.hash = content_hash(content.tree())
        _check(content)

    @property
    def dataset_id(self) -> str:
        """The data that were split."""
        return self._content.dataset_id

    @property
    def repeats(self) -> int:
        """Number of repetitions."""
        return 1 + max(repeat for repeat, _ in self._cuts)

    @property
    def folds(self) -> int:
        """Number of outer folds of each repetition."""
        return 1 + max(fold for _, fold in self._cuts)

    def development(self, repeat: int, fold: int) -> DevelopmentSplit:
        """The training part of an outer fold and its inner cuts.

        Raises:
            DataError: There is no such repeat or fold.
        """
        cut = self._cut(repeat, fold)
        training = _without(self._content.groups, (*cut.test, *cut.left_out))
        inner = tuple(InnerSplit(_without(training, part), part) for part in cut.validations)
        return DevelopmentSplit(repeat, fold, training, inner)

    def describe(self) -> str:
        """One line for logs and reports."""
        rules = ", ".join(f"{name} {value}" for name, value in self._content.protocol.items())
        num_groups = len(set(self._content.groups.values()))
        return f"{len(self._content.groups)} bags of {num_groups} groups; {rules}; split {self.hash}"

    def save(self, path: Path) -> None:
        """Write the split file.

        Raises:
            EnvironmentProblem: It cannot be written.
        """
        publish_json(path, {**self._content.tree(), "hash": self.hash})

    @classmethod
    def load(cls, path: Path) -> SplitPlan:
        """Read a split file.

        Raises:
            DataError: There is no such file.
            IntegrityError: It is damaged or was edited.
        """
        try:
            tree = json.loads(path.read_bytes())
            saved_hash = tree.pop("hash")
            plan = cls(_Content.model_validate(tree))
        except FileNotFoundError:
            raise DataError(f"{path}: no such split file; run the experiment once to make it") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError, DataError) as error:
            raise IntegrityError(f"{path}: not a split file ({error}); delete it to have it made again") from None
        if plan.hash != saved_hash:
            raise IntegrityError(
                f"{path}: the content has hash {plan.hash}, the file says {saved_hash}: it was edited or damaged; "
                "restore it, or delete it to have the split made again"
            )
        return plan

    def check_matches(self, fresh: SplitPlan, path: Path) -> None:
        """Refuse a saved plan that was made for other data, groups or rules than a fresh one.

        Args:
            fresh: The plan the present data and configuration give.
            path: Where this plan was saved.

        Raises:
            DataError: They differ; the message says in what.
        """
        saved, now = self._content, fresh._content
        differences = [] if saved.dataset_id == now.dataset_id else ["the stored bags"]
        differences += [
            f"protocol.{name} (saved {saved.protocol.get(name)!r}, now {now.protocol.get(name)!r})"
            for name in sorted({*saved.protocol, *now.protocol})
            if saved.protocol.get(name) != now.protocol.get(name)
        ]
        if saved.groups != now.groups:
            differences.append("the labelled bags or their groups")
        if differences:
            raise DataError(
                f"{path}: this split was made with other {', '.join(differences)}; choose another run directory, or "
                "delete the file if no result depends on it"
            )

    def _test_ids(self, repeat: int, fold: int) -> tuple[str, ...]:
        """For `asmil.data.sealed`, which writes down that and why it asked."""
        return self._cut(repeat, fold).test

    def _cut(self, repeat: int, fold: int) -> _Cut:
        try:
            return self._cuts[repeat, fold]
        except KeyError:
            raise DataError(
                f"no fold {fold} of repeat {repeat}: this split has {self.repeats} repeats of {self.folds} folds, "
                "both counted from 0"
            ) from None


def _without(bag_ids: Iterable[str], part: Sequence[str]) -> tuple[str, ...]:
    left_out = set(part)
    return tuple(bag_id for bag_id in bag_ids if bag_id not in left_out)


def make_splits(
    cohort: Cohort, strata: Sequence[Hashable], protocol: ProtocolConfig, official: pd.Series | None
) -> SplitPlan:
    """Cut a cohort into outer test parts and inner validation parts; a pure function of its arguments.

    Args:
        cohort: All bags.
        strata: Stratum of each bag of the cohort, in its order.
        protocol: Scheme, numbers and seed.
        official: The split column, index = bag id; needed by the scheme `official`.

    Raises:
        DataError: A class is too small, or the official or imported split is missing or unusable.
    """
    groups = dict(zip(cohort.bag_ids, cohort.groups(cohort.bag_ids), strict=True))
    cutter = _Cutter(groups, group_strata(list(groups.values()), strata), protocol)
    given = _given_splits(cohort) if protocol.scheme == "given" else None
    if given is not None:
        cuts = list(cutter.given(given, cohort))
    elif protocol.scheme == "official":
        if official is None:
            raise DataError("protocol.scheme: 'official' needs data.labels.split, the column with train, val and test")
        cuts = list(cutter.official(official.loc[list(cohort.bag_ids)]))
    else:
        cuts = list(cutter.kfold() if protocol.scheme == "kfold" else cutter.holdout())
    rules = _rules(protocol, cohort, official)
    return SplitPlan(_Content(dataset_id=cohort.dataset_id, protocol=rules, groups=groups, cuts=tuple(cuts)))


def load_or_make_splits(
    path: Path, cohort: Cohort, strata: Sequence[Hashable], protocol: ProtocolConfig, official: pd.Series | None
) -> SplitPlan:
    """The split saved at `path`, or a new one saved there.

    A saved split is kept even where the strata have changed since (a corrected label): parts stay comparable.

    Args:
        path: The split file.
        cohort: As for `make_splits`.
        strata: As for `make_splits`.
        protocol: As for `make_splits`.
        official: As for `make_splits`.

    Raises:
        DataError: The saved split was made for other data or rules, or none can be made.
        IntegrityError: The file is damaged or was edited.
    """
    fresh = make_splits(cohort, strata, protocol, official)
    if path.exists():
        saved = SplitPlan.load(path)
        saved.check_matches(fresh, path)
        return saved
    fresh.save(path)
    return fresh


def _given_splits(cohort: Cohort) -> GivenSplits:
    store = cohort.store
    content = store.given_splits()
    if content is None:
        raise DataError(
            f"{store.uri}: protocol.scheme is 'given', but the store holds no imported splits; convert again with "
            "--splits PATH, or choose the scheme kfold, holdout or official"
        )
    return GivenSplits.from_bytes(content, f"{store.uri}/{SPLITS_FILE}")


def official_rules(protocol: ProtocolConfig, cohort: Cohort, official: pd.Series | None) -> dict[str, str]:
    """Which official split is taken: the column's name and a hash of the part of each bag; empty for other schemes."""
    if protocol.scheme != "official" or official is None:
        return {}
    parts = official.loc[list(cohort.bag_ids)]
    return {
        "split_column": str(official.name),
        "split_parts": content_hash({bag_id: str(part) for bag_id, part in parts.items()}),
    }


def _rules(protocol: ProtocolConfig, cohort: Cohort, official: pd.Series | None) -> dict[str, Any]:
    """The settings a split depends on."""
    own: dict[str, dict[str, Any]] = {
        "kfold": {"folds": protocol.folds},
        "holdout": {"test_fraction": protocol.test_fraction},
        "official": official_rules(protocol, cohort, official),
        "given": {"imported": cohort.store.info.splits_sha256},
    }
    return {
        "scheme": protocol.scheme,
        **own[protocol.scheme],
        "repeats": protocol.repeats,
        "split_seed": protocol.split_seed,
        "inner": protocol.inner.model_dump(exclude_none=True),
    }


@dataclass(frozen=True)
class _Cutter:
    """Applies a scheme to groups and gives the cuts as bags."""

    groups: Mapping[str, str]
    strata: Mapping[str, Hashable]
    protocol: ProtocolConfig

    def kfold(self) -> Iterator[_Cut]:
        for repeat in range(self.protocol.repeats):
            folds = stratified_folds(
                self.strata, self.protocol.folds, seed=self.protocol.split_seed + repeat, what="the cohort"
            )
            for fold, test in enumerate(folds):
                yield self._cut(repeat, fold, test)

    def holdout(self) -> Iterator[_Cut]:
        for repeat in range(self.protocol.repeats):
            seed = f"test/{self.protocol.split_seed + repeat}"
            share = self.protocol.test_fraction
            yield self._cut(
                repeat, 0, stratified_holdout(self.strata, share, seed=seed, what="the cohort", min_members=2)
            )

    def official(self, column: pd.Series) -> Iterator[_Cut]:
        parts = official_parts(column, list(self.groups.values()))
        test = [group for group, part in parts.items() if part == "test"]
        validation = [group for group, part in parts.items() if part == "val"]
        for repeat in range(self.protocol.repeats):
            if validation:
                yield _Cut(repeat=repeat, fold=0, test=self._bags(test), validations=(self._bags(validation),))
            else:
                yield self._cut(repeat, 0, test)

    def given(self, imported: GivenSplits, cohort: Cohort) -> Iterator[_Cut]:
        """Imported folds that test no bag twice are outer folds; repeated holdouts are repeats of one fold."""
        for number in range(len(imported.folds)):
            repeat, fold = (number, 0) if imported.tests_overlap else (0, number)
            parts = imported.bag_parts(number, cohort.slides, cohort.store.uri)
            outside = {*parts.test, *parts.left_out}
            validations: tuple[tuple[str, ...], ...] = (parts.validation,)
            if not parts.validation:
                training = {group: self.strata[group] for bag, group in self.groups.items() if bag not in outside}
                chosen = (self._bags(part) for part in self._inner(training, repeat, fold))
                validations = tuple(_without(part, tuple(outside)) for part in chosen)
            yield _Cut(
                repeat=repeat, fold=fold, test=parts.test, validations=validations, left_out=parts.left_out
            )  # fmt: skip

    def _cut(self, repeat: int, fold: int, test: Iterable[str]) -> _Cut:
        test = set(test)
        training = {group: stratum for group, stratum in self.strata.items() if group not in test}
        validations = tuple(self._bags(part) for part in self._inner(training, repeat, fold))
        return _Cut(repeat=repeat, fold=fold, test=self._bags(test), validations=validations)

    def _inner(self, training: Mapping[str, Hashable], repeat: int, fold: int) -> list[list[str]]:
        seed = f"inner/{self.protocol.split_seed}/{repeat}/{fold}"
        what = f"the training part of fold {fold}"
        inner = self.protocol.inner
        if inner.holdout is not None:
            return [stratified_holdout(training, inner.holdout, seed=seed, what=what, min_members=1)]
        assert inner.folds is not None
        return stratified_folds(training, inner.folds, seed=xxhash.xxh3_64_intdigest(seed.encode()), what=what)

    def _bags(self, groups: Iterable[str]) -> tuple[str, ...]:
        wanted = set(groups)
        return tuple(bag_id for bag_id, group in self.groups.items() if group in wanted)


def _check(content: _Content) -> None:
    """Refuse parts that overlap, miss or invent bags, or tear a group."""
    for cut in content.cuts:
        where = f"repeat {cut.repeat}, fold {cut.fold}"
        used = _without(content.groups, cut.left_out)
        training = _without(used, cut.test)
        _check_part(cut.test, used, content.groups, f"{where}, test part")
        for part in cut.validations:
            _check_part(part, training, content.groups, f"{where}, validation part")
    if content.protocol.get("scheme") == "kfold":
        for repeat in {cut.repeat for cut in content.cuts}:
            tested = sorted(bag_id for cut in content.cuts if cut.repeat == repeat for bag_id in cut.test)
            if tested != sorted(content.groups):
                raise DataError(f"repeat {repeat}: the folds do not test every bag exactly once")


def _check_part(part: Sequence[str], whole: Sequence[str], groups: Mapping[str, str], where: str) -> None:
    inside, outside = set(part), _without(whole, part)
    unknown = sorted(inside - set(whole))
    if unknown or len(inside) != len(part) or not 0 < len(part) < len(whole):
        raise DataError(
            f"{where}: {len(part)} bags of {len(whole)}, {len(part) - len(inside)} repeated, "
            f"{len(unknown)} from elsewhere: {first_of(unknown)}"
        )
    torn = {groups[bag_id] for bag_id in part} & {groups[bag_id] for bag_id in outside}
    if torn:
        raise DataError(f"{where}: {len(torn)} groups lie on both sides: {first_of(sorted(torn))}")
