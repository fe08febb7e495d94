"""From a label file to the label table of a store: which row belongs to which stored slide."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from asmil.data.config import LabelColumns
from asmil.data.labels import first_of, normalise_labels, read_label_table
from asmil.data.sources.base import LabelValue
from asmil.errors import DataError

__all__ = ["LabelMatcher", "LabelOptions", "add_label_arguments", "label_options"]

_SLIDE_SUFFIXES = (".ome.tif", ".ome.tiff", ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".czi", ".bif", ".vms")


@dataclass(frozen=True)
class LabelOptions:
    """The label file of a conversion.

    Attributes:
        table: The file; None takes the labels the source carries, if it does.
        columns: Which of its columns hold ids.
    """

    table: Path | None = None
    columns: LabelColumns = field(default_factory=LabelColumns)


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line that `label_options` reads."""
    parser.add_argument("--labels", type=Path, metavar="TABLE", help="label table to store: .csv, .tsv or .parquet")
    parser.add_argument("--id-column", default="slide", help="its column of slide ids (default: %(default)s)")
    parser.add_argument("--group-column", help="its column of patient ids, kept as text")


def label_options(given: argparse.Namespace) -> LabelOptions:
    """What the command line says about labels."""
    return LabelOptions(given.labels, LabelColumns(id=given.id_column, group=given.group_column))


class LabelMatcher:
    """Makes the label table of a store: from a file, or from what the source itself carries.

    Args:
        options: The file and its columns; read at once, so that a bad table is found before the conversion.
        no_tissue: Slides of the source that are left out on purpose; their label rows are dropped.
        say: Receives every finding, one line each.

    Raises:
        ConfigError: A named column is missing.
        DataError: The table cannot be read, or has rows without an id.
    """

    def __init__(self, options: LabelOptions, no_tissue: Sequence[str], say: Callable[[str], None]) -> None:
        self.options = options
        self.no_tissue = tuple(no_tissue)
        self.say = say
        self.table: pd.DataFrame | None = None
        if options.table is not None:
            raw = read_label_table(options.table, options.columns)
            self.table = normalise_labels(raw, options.columns, str(options.table))

    def of_store(
        self, slide_ids: Sequence[str], carried_labels: Mapping[str, Mapping[str, LabelValue]]
    ) -> pd.DataFrame | None:
        """The table to store.

        Args:
            slide_ids: The stored slides.
            carried_labels: The source's own labels, by slide and column.

        Returns:
            A table whose id column holds stored slide ids; None if there are no labels.

        Raises:
            DataError: No row belongs to a stored slide, two rows to the same one, or a source that labels only some.
        """
        rows: list[dict[str, Any]] = [{"slide": slide_id, **carried_labels.get(slide_id, {})} for slide_id in slide_ids]
        carried = sorted({name for row in rows for name in row} - {"slide"})
        if self.table is not None:
            if carried:
                self.say(f"labels are taken from {self.options.table}, not from the source ({', '.join(carried)})")
            return self._matched(self.table, slide_ids)
        if not carried:
            self.say("no labels: give --labels TABLE, or name a table under data.labels.table of the experiment")
            return None
        for name in carried:
            lacking = [row["slide"] for row in rows if name not in row]
            if lacking:
                raise DataError(
                    f"label {name!r} is missing for {len(lacking)} of {len(rows)} slides: {first_of(lacking)}; "
                    "give --labels TABLE"
                )
        return pd.DataFrame(rows)

    def _matched(self, table: pd.DataFrame, slide_ids: Sequence[str]) -> pd.DataFrame:
        column, path = self.options.columns.id, self.options.table
        known = {*slide_ids, *self.no_tissue}
        ids = [_match_id(label_id, known) for label_id in table[column]]
        self._refuse_ambiguity(list(table[column]), ids)
        matched = table.assign(**{column: ids})
        matched = matched[~matched[column].isin(set(self.no_tissue))]
        unlabelled = [slide_id for slide_id in slide_ids if slide_id not in set(ids)]
        without_bag = [label_id for label_id in matched[column] if label_id not in known]
        if len(unlabelled) == len(slide_ids):
            raise DataError(
                f"{path}: no value of column {column!r} ({first_of(list(table[column]), limit=3)}) is a slide of the "
                f"source ({first_of(list(slide_ids), limit=3)}); give --id-column, or correct the ids"
            )
        if unlabelled:
            self.say(f"{len(unlabelled)} slides have no row in {path}: {first_of(unlabelled)}")
        if without_bag:
            self.say(f"{len(without_bag)} rows of {path} have no slide in the source: {first_of(without_bag)}")
        return matched

    def _refuse_ambiguity(self, label_ids: Sequence[str], ids: Sequence[str]) -> None:
        first_by_id: dict[str, str] = {}
        for label_id, slide_id in zip(label_ids, ids, strict=True):
            other = first_by_id.setdefault(slide_id, label_id)
            if other != label_id:
                raise DataError(
                    f"{self.options.table}: {other!r} and {label_id!r} both name slide {slide_id!r}; keep one of them"
                )


def _match_id(label_id: str, known: set[str]) -> str:
    """The slide a label row names: the id as written, or without the suffix of a slide file; else as written."""
    if label_id in known:
        return label_id
    for suffix in _SLIDE_SUFFIXES:
        stem = label_id.removesuffix(suffix)
        if stem != label_id and stem in known:
            return stem
    return label_id
