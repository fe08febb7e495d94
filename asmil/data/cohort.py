"""Bags joined with their labels: what loaders, tasks and splits see."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from asmil.bags import Bag, BagBatch
from asmil.data.cache import blocks_for
from asmil.data.config import DataConfig, LabelColumns
from asmil.data.labels import first_of, normalise_labels, read_label_table
from asmil.data.schema import COORD_DTYPES, FEATURE_DTYPES
from asmil.data.store import BagStore
from asmil.data.tables.names import SlideNames
from asmil.data.tables.rows import rows_of_slides
from asmil.errors import ConfigError, DataError

__all__ = ["Cohort"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """Bags, their labels and their groups, in store order.

    A restricted cohort knows nothing of the other bags: no id, no label, no byte range. It is what training and search
    workers are given.

    Attributes:
        store: Where the slides are.
        labels: One row per bag, index = bag id; column `group` and the columns of the label table.
        slides: The stored slides of each bag, in the order in which a bag holds them.
    """

    store: BagStore
    labels: pd.DataFrame
    slides: Mapping[str, tuple[str, ...]]

    @classmethod
    def open(cls, data: DataConfig, *, independent_bags: bool) -> Cohort:
        """Join a store with its labels.

        Args:
            data: Store, label table and what forms a bag.
            independent_bags: Bags without a group are allowed and are groups of their own.

        Raises:
            ConfigError: A declared column is missing, or patient bags without a group column.
            DataError: No label table, labels and bags that do not match, bags without a group, repeated rows, or
                slides of one patient bag that contradict each other.
        """
        if data.bag == "patient" and data.labels.group is None:
            raise ConfigError("data.bag: 'patient' needs data.labels.group, the column that names the patient")
        store = BagStore.open(data.store, blocks=partial(blocks_for, data))
        table, source = _read_table(store, data)
        rows = _match(store, normalise_labels(table, data.labels, source), data, source)
        rows["group"] = _groups(rows, data.labels, independent_bags, source)
        if data.bag == "slide":
            return cls(store, rows, {slide_id: (slide_id,) for slide_id in rows.index})
        slides = {str(group): tuple(sorted(part.index)) for group, part in rows.groupby("group", sort=False)}
        return cls(store, _patient_rows(rows, data.labels, source), slides)

    @property
    def bag_ids(self) -> tuple[str, ...]:
        """The bags, in store order."""
        return tuple(self.labels.index)

    @property
    def num_features(self) -> int:
        """Width D of the stored features."""
        return self.store.info.num_features

    @property
    def simulated(self) -> bool:
        """Whether the data were made up."""
        return self.store.info.simulated

    @property
    def dataset_id(self) -> str:
        """Identity of the stored bags."""
        return self.store.info.dataset_id

    @property
    def labels_id(self) -> str:
        """Identity of bags, groups and label values."""
        return hashlib.sha256(self.labels.to_csv().encode()).hexdigest()[:16]

    def groups(self, bag_ids: Sequence[str]) -> tuple[str, ...]:
        """The group of each bag."""
        return tuple(self.frame(bag_ids)["group"])

    def frame(self, bag_ids: Sequence[str]) -> pd.DataFrame:
        """Label rows of the bags, in the given order.

        Raises:
            DataError: A bag is not in this cohort.
        """
        for bag_id in bag_ids:
            self._slides_of(bag_id)
        return self.labels.loc[list(bag_ids)]

    def length(self, bag_id: str) -> int:
        """Number of instances of a bag."""
        return sum(self.store.length(slide_id) for slide_id in self._slides_of(bag_id))

    def read(self, bag_id: str) -> Bag:
        """Read a bag; its slides lie one after another.

        Raises:
            DataError: The bag is not in this cohort.
            IntegrityError: Stored bytes are damaged.
        """
        packed = self.store.read_slides(self._slides_of(bag_id))
        return Bag(
            bag_id=bag_id,
            features_ND=packed.features_MD,
            coords_N2=packed.coords_M2,
            slide_offsets=packed.slide_offsets,
            instance_labels_N=packed.instance_labels_M,
        )

    @property
    def instance_bytes(self) -> int:
        """Bytes of one instance in memory: features, coordinates and instance labels as stored."""
        info = self.store.info
        coords = 2 * COORD_DTYPES[info.coord_dtype].numpy.itemsize if info.coord_dtype else 0
        return info.num_features * FEATURE_DTYPES[info.dtype].numpy.itemsize + coords + info.has_instance_labels

    def read_batch(
        self,
        bag_ids: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        rows: Sequence[np.ndarray | None] | None = None,
        pin_memory: bool = False,
    ) -> BagBatch:
        """`BagBatch.pack` of the bags, read straight into the batch without a copy per bag.

        Args:
            bag_ids: At least one bag.
            seeds: One random stream per bag.
            rows: Per bag the rows to keep, ascending, or None for all of them. Bags are then read whole (only so is
                their checksum checked) but one at a time.
            pin_memory: Read into page-locked memory, from which a GPU copies while the CPU goes on.

        Raises:
            DataError: A bag is not in this cohort.
            IntegrityError: Stored bytes are damaged.
        """
        if rows is not None and any(kept is not None for kept in rows):
            bags = (self.read(bag_id) for bag_id in bag_ids)
            parts = [
                bag if kept is None else bag.take(torch.from_numpy(kept)) for bag, kept in zip(bags, rows, strict=True)
            ]
            return BagBatch.pack(parts, seeds=seeds, pin_memory=pin_memory)
        slides = [self._slides_of(bag_id) for bag_id in bag_ids]
        packed = self.store.read_slides([slide_id for part in slides for slide_id in part], pin_memory=pin_memory)
        first_slide = torch.tensor([0, *(len(part) for part in slides)]).cumsum(0)
        return BagBatch(
            bag_ids=tuple(bag_ids),
            features_MD=packed.features_MD,
            offsets=packed.slide_offsets[first_slide],
            coords_M2=packed.coords_M2,
            slide_offsets=packed.slide_offsets,
            seeds_B=None if seeds is None else torch.tensor(list(seeds), dtype=torch.int64),
        )

    def restrict(self, bag_ids: Sequence[str]) -> Cohort:
        """A cohort of these bags only, in the order of this cohort.

        Raises:
            DataError: A bag is not in this cohort.
        """
        wanted = set(bag_ids)
        self.frame(bag_ids)
        kept = [bag_id for bag_id in self.bag_ids if bag_id in wanted]
        slides = {bag_id: self.slides[bag_id] for bag_id in kept}
        store = self.store.restrict([slide_id for part in slides.values() for slide_id in part])
        return Cohort(store, self.labels.loc[kept].copy(), slides)

    def _slides_of(self, bag_id: str) -> tuple[str, ...]:
        try:
            return self.slides[bag_id]
        except KeyError:
            raise DataError(
                f"{self.store.uri}: no bag {bag_id!r} in this cohort of {len(self.slides)} bags; it may lie in "
                "a part of the split that is not open here"
            ) from None


def _read_table(store: BagStore, data: DataConfig) -> tuple[pd.DataFrame, str]:
    if data.labels.table is not None:
        path = Path(data.labels.table)
        return read_label_table(path, data.labels), str(path)
    table = store.labels()
    if table is None:
        raise DataError(f"{store.uri}: the store has no label table; name a file in data.labels.table")
    return table, f"label table of {store.uri}"


def _match(store: BagStore, table: pd.DataFrame, data: DataConfig, source: str) -> pd.DataFrame:
    """Label rows of the stored slides, in store order, index = slide id.

    As in a conversion, rows of slides that were left out because they hold no tissue are no rows too many.
    """
    no_tissue = set(store.info.provenance.get("no_tissue", ())).difference(store.slide_ids)
    matched = rows_of_slides(table, data.labels.id, SlideNames((*store.slide_ids, *sorted(no_tissue))), source)
    for note in matched.notes():
        _log.info("%s: %s", source, note)
    frame = matched.frame[~matched.frame[data.labels.id].isin(no_tissue)]
    ids = frame[data.labels.id]
    labelled = set(ids)
    no_bag = [slide_id for slide_id in ids if slide_id not in store.index]
    no_label = [slide_id for slide_id in store.slide_ids if slide_id not in labelled]
    if no_bag or no_label:
        _report_missing(no_bag, no_label, data, source)
    kept = [slide_id for slide_id in store.slide_ids if slide_id in labelled]
    if not kept:
        raise DataError(f"{source}: no label belongs to a bag of {store.uri}; check data.labels.id")
    rows = frame.set_index(pd.Index(ids.to_numpy(), dtype=object), drop=False).loc[kept]
    return rows.rename_axis("bag_id")


def _report_missing(no_bag: list[str], no_label: list[str], data: DataConfig, source: str) -> None:
    limit = max(len(no_bag), len(no_label)) if data.allow_missing else 10
    parts = [
        f"{len(names)} {what}: {first_of(names, limit)}"
        for names, what in ((no_bag, "labels without a bag"), (no_label, "bags without a label"))
        if names
    ]
    message = f"{source} and {data.store} do not match: {'; '.join(parts)}"
    if not data.allow_missing:
        raise DataError(f"{message}; correct the table, or set data.allow_missing: true to leave them out")
    _log.warning("%s; left out, as data.allow_missing says", message)


def _groups(rows: pd.DataFrame, columns: LabelColumns, independent_bags: bool, source: str) -> pd.Series:
    groups = pd.Series(None, index=rows.index, dtype=object) if columns.group is None else rows[columns.group]
    missing = groups.isna()
    if not missing.any():
        return groups
    if not independent_bags:
        raise DataError(
            f"{source}: {int(missing.sum())} bags have no group: {first_of(list(rows.index[missing]))}; name the "
            "patient column in data.labels.group, or set protocol.independent_bags: true if no two bags share a patient"
        )
    return groups.where(~missing, pd.Series(rows.index, index=rows.index, dtype=object))


def _patient_rows(rows: pd.DataFrame, columns: LabelColumns, source: str) -> pd.DataFrame:
    """One row per group; columns that are not labels stay only if they never differ within a group."""
    grouped = rows.groupby("group", sort=False)
    num_values = grouped.nunique(dropna=False)
    outcome = {columns.time, columns.event, columns.censor}
    declared = {columns.target, *outcome, columns.split, *columns.covariates} - {None}
    kept = []
    for name in rows.columns:
        if name == "group":
            continue
        conflicting = [str(group) for group in num_values.index[num_values[name] > 1]]
        if conflicting and name in declared:
            raise DataError(
                f"{source}: column {name!r} differs between slides of the same patient for {len(conflicting)} "
                f"patients: {first_of(conflicting)}; patient bags need one value per patient"
            )
        if not conflicting:
            kept.append(name)
    firsts = rows[~rows["group"].duplicated()]
    patients = firsts[[*kept, "group"]].set_index(pd.Index(firsts["group"].to_numpy(), dtype=object))
    return patients.rename_axis("bag_id")
