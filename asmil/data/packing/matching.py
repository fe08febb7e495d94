"""From label and split files to what a store keeps of them: which row and which id belongs to which stored slide."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import yaml

from asmil.data.config import LabelColumns
from asmil.data.labels import first_of
from asmil.data.sources.base import LabelValue
from asmil.data.tables.foreign_splits import ForeignSplits, read_splits
from asmil.data.tables.importing import StoredSlides, import_splits
from asmil.data.tables.loading import LabelOptions, LabelTable, load_label_table
from asmil.data.tables.names import SlideNames
from asmil.data.tables.outcomes import EVENT, TimeUnit, outcome_lines
from asmil.data.tables.rows import rows_of_slides
from asmil.errors import ConfigError, DataError

__all__ = ["LabelMatcher", "LabelOptions", "add_label_arguments", "label_options"]

_COLUMN_HELP = {
    "id": "column of slide ids (default: that of a recognised table, else slide)",
    "group": "column of patient ids",
    "target": "column of the class label",
    "time": "column of the follow-up time",
    "event": "column that is 1 (or dead) where the event was observed",
    "censor": "column that is 1 where the event was NOT observed",
}


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line that `label_options` reads."""
    group = parser.add_argument_group(
        "labels and splits", "tables of CLAM, MCAT, PORPOISE, SurvPath, MMP, PANTHER, Patho-Bench, STAMP, torchmil, "
        "MIL_BASELINE and ACMIL are recognised; ids are always kept as text",
    )  # fmt: skip
    group.add_argument("--labels", type=Path, metavar="TABLE", help="label table to store: .csv (or zipped), .tsv, ...")
    for name, text in _COLUMN_HELP.items():
        group.add_argument(f"--{name}-column", metavar="NAME", help=text)
    group.add_argument(
        "--time-unit", choices=get_args(TimeUnit), help="unit of the time column (default: what its name says)"
    )
    group.add_argument(
        "--allow-missing", action="store_true", help="list labels without a slide and slides without one, and go on"
    )
    group.add_argument(
        "--slide-table", type=Path, metavar="TABLE", help="slides of each patient, if TABLE has patients"
    )
    group.add_argument("--splits", type=Path, nargs="+", default=(), metavar="PATH", help="split files to import")
    group.add_argument("--allow-incomplete-splits", action="store_true", help="labelled slides may be in no part")


def label_options(given: argparse.Namespace) -> LabelOptions:
    """What the command line says about labels.

    Raises:
        ConfigError: Options that exclude or need each other.
    """
    columns = {name: getattr(given, f"{name}_column") for name in _COLUMN_HELP}
    columns = {name: value for name, value in columns.items() if value is not None}
    if {"event", "censor"} <= set(columns):
        raise ConfigError(
            "--event-column (1 = event observed) and --censor-column (1 = not observed) exclude each other; give one"
        )
    if given.labels is None and (columns or given.time_unit or given.slide_table):
        raise ConfigError("options about label columns need --labels TABLE; give the table they are about")
    return LabelOptions(
        given.labels,
        LabelColumns(**columns),
        given.time_unit,
        given.slide_table,
        tuple(given.splits),
        given.allow_incomplete_splits,
        given.allow_missing,
    )


class LabelMatcher:
    """Makes the label table of a store, from a file or from what the source carries, and its imported splits.

    Args:
        options: Files and their columns; read at once, so that a bad table is found before the conversion.
        no_tissue: Slides of the source that are left out on purpose; their label rows are dropped.
        say: Receives every finding, one line each.

    Attributes:
        provenance: Where the stored table comes from, how its outcome was made, and what did not match.

    Raises:
        ConfigError: A named column is missing, or options are.
        DataError: A file cannot be read, or holds ids or outcomes that cannot be used.
    """

    def __init__(self, options: LabelOptions, no_tissue: Sequence[str], say: Callable[[str], None]) -> None:
        self.options = options
        self.no_tissue = tuple(no_tissue)
        self.say = say
        self.provenance: dict[str, Any] = {}
        self.table: LabelTable | None = None if options.table is None else load_label_table(options, say)
        self._foreign: ForeignSplits | None = read_splits(options.splits) if options.splits else None

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
            DataError: No row belongs to a stored slide, several to the same one, ids that several slides could have,
                labels without a slide or slides without a label unless they are allowed, or a source that labels only
                some.
        """
        rows: list[dict[str, Any]] = [{"slide": slide_id, **carried_labels.get(slide_id, {})} for slide_id in slide_ids]
        carried = sorted({name for row in rows for name in row} - {"slide"})
        if self.table is not None:
            if carried:
                self.say(f"labels are taken from {self.options.table}, not from the source ({', '.join(carried)})")
            matched = self._matched(self.table, slide_ids)
            for line in _summary(self.table, matched[matched[self.table.columns.id].isin(set(slide_ids))]):
                self.say(line)
            return matched
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

    def splits(self, slide_ids: Sequence[str], labels: pd.DataFrame | None) -> bytes | None:
        """The file of imported splits to store; None without `--splits`.

        Args:
            slide_ids: The stored slides.
            labels: What `of_store` gave.

        Raises:
            DataError: The splits do not fit the stored slides, or overlap, tear a patient or are incomplete.
        """
        if self._foreign is None:
            return None
        groups: dict[str, str | None] = dict.fromkeys(slide_ids)
        if labels is not None:
            columns = LabelColumns() if self.table is None else self.table.columns
            stored = labels[labels[columns.id].isin(set(slide_ids))]
            of_rows = [None] * len(stored) if columns.group is None else stored[columns.group].tolist()
            groups = dict(zip(stored[columns.id].tolist(), of_rows, strict=True))
            if columns.group is None:
                self.say("no --group-column: nothing shows whether a patient's slides lie in two parts of the splits")
        slides = StoredSlides(slide_ids, groups, self.no_tissue)
        allow = self.options.allow_incomplete_splits
        return import_splits(self._foreign, slides, allow_incomplete=allow, say=self.say).to_bytes()

    def lines_to_use(self) -> Iterator[str]:
        """The lines of an experiment on these labels and splits, to be pasted as one block; none without both."""
        lines = [] if self.table is None else list(_experiment(self.table))
        if self._foreign is not None:
            lines.append("protocol: {scheme: given}")
        if lines:
            yield "use them with:"
            yield from (f"  {line}" for line in lines)

    def _matched(self, table: LabelTable, slide_ids: Sequence[str]) -> pd.DataFrame:
        column, label_ids = table.columns.id, list(table.frame[table.columns.id])
        known = SlideNames((*slide_ids, *self.no_tissue))
        rows = rows_of_slides(table.frame, column, known, table.source)
        labelled = set(slide_ids) & set(rows.frame[column])
        if not labelled:
            raise DataError(
                f"{table.source}: no value of column {column!r} ({first_of(label_ids, limit=3)}) is a slide of the "
                f"source ({first_of(slide_ids, limit=3)}); give --id-column, or correct the ids"
            )
        matched = rows.frame[~rows.frame[column].isin(set(self.no_tissue))]
        if rows.repeated:
            self.say(f"{table.source}: {rows.repeated} rows repeat an earlier row word for word; kept once")
        shortened = len(labelled.intersection(rows.shortened))
        how = f", {shortened} of them without folder and suffix of the id" if shortened else ""
        share = 100 * len(labelled) / len(slide_ids)
        self.say(f"{len(labelled)} of {len(slide_ids)} slides ({share:.1f} %) have a row in {table.source}{how}")
        self._report_missing(
            table.source,
            (*(label_id for label_id in matched[column] if label_id not in known), *table.unused),
            [slide_id for slide_id in slide_ids if slide_id not in labelled],
        )
        if table.polarity is not None:
            self.provenance["labels"]["outcome"] = table.polarity
        return matched

    def _report_missing(self, source: str, without_slide: Sequence[str], without_label: Sequence[str]) -> None:
        found = ((without_slide, "labels without a slide"), (without_label, "slides without a label"))
        parts = [f"{len(names)} {what}: {first_of(names)}" for names, what in found if names]
        self.provenance["labels"] = {
            "table": source,
            **{what.replace(" ", "_"): list(names) for names, what in found},
        }
        if not parts:
            return
        message = f"{source} and the slides do not match: {'; '.join(parts)}"
        if not self.options.allow_missing:
            raise DataError(f"{message}; correct the table or the ids, or go on without them with --allow-missing")
        self.say(f"{message}; all of them are listed in dataset.json, and training needs data.allow_missing: true")


def _summary(table: LabelTable, rows: pd.DataFrame) -> Iterator[str]:
    """What the stored rows say."""
    columns = table.columns
    whose = rows.index if columns.group is None else rows[columns.group].fillna(rows[columns.id])
    patients = rows[~pd.Series(whose, index=rows.index).duplicated()]
    counted = f"{len(rows)} slides"
    if columns.group is not None:
        counted += f" of {len(patients)} patients"
    if table.time_unit is not None:
        assert columns.time is not None
        time_B, event_B = patients[columns.time].to_numpy(np.float64), patients[EVENT].to_numpy()
        yield from outcome_lines(time_B, event_B, table.time_unit, counted)
    elif columns.group is not None:
        yield f"labels of {counted}"
    if columns.target is not None:
        classes = rows[columns.target].value_counts(dropna=False)
        shown = [f"{name} {count}" for name, count in classes.items()]
        yield f"classes in {columns.target!r}, by slides: {first_of(shown, limit=20)}"


def _experiment(table: LabelTable) -> Iterator[str]:
    """The sections `data.labels` and `task` of an experiment on the table."""
    columns = table.columns
    roles: dict[str, Any] = {"id": columns.id, "group": columns.group, "target": columns.target}
    task = {} if columns.target is None else {"kind": "classification"}
    if table.time_unit is not None:
        roles |= {"time": columns.time, "event": columns.event, "covariates": list(columns.covariates) or None}
        task = {"kind": "survival", "time_unit": table.time_unit}
    yield "data:"
    yield f"  labels: {_in_one_line({name: value for name, value in roles.items() if value is not None})}"
    if task:
        yield f"task: {_in_one_line(task)}"


def _in_one_line(section: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(section), sort_keys=False, default_flow_style=True, width=10_000).strip()
