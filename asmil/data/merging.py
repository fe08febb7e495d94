"""Label tables of several stores as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from asmil.data.labels import first_of
from asmil.data.tables.names import SlideNames, find_id_column
from asmil.data.tables.rows import slides_named
from asmil.errors import DataError

__all__ = ["LabelPart", "joined_labels"]


class LabelPart(NamedTuple):
    """The label table of one store.

    Attributes:
        source: The store, as named in errors.
        table: Its label table, if it has one.
        slide_ids: Its slides.
    """

    source: str
    table: pd.DataFrame | None
    slide_ids: tuple[str, ...]


def joined_labels(parts: Sequence[LabelPart], say: Callable[[str], None]) -> pd.DataFrame | None:
    """One table of all rows: for each slide that of the store which has the slide, else that of the first table.

    Stores are often made with one common label file. In each of them the rows of its own slides have stored ids, and
    the rows of the others have ids as the file writes them; these are matched with the slides of all stores.

    Args:
        parts: The stores, in order.
        say: Receives every finding, one line each.

    Returns:
        The table, with the columns in the order of the first one and one row per slide if a column holds slide ids;
        rows about no slide of any store are kept. None if no store has labels.

    Raises:
        DataError: Only some stores have labels, their columns differ in name or kind, ids that several slides could
            have, or rows of one slide with different values.
    """
    tables = [(part, part.table) for part in parts if part.table is not None]
    if not tables:
        return None
    without = [part.source for part in parts if part.table is None]
    if without:
        raise DataError(
            f"{without[0]}: there is no label table, but {tables[0][0].source} has one; stores are joined with labels "
            "in all of them or in none: convert the store again with --labels"
        )
    joined = _concatenated([(part.source, table) for part, table in tables])
    slide_ids = [slide_id for part in parts for slide_id in part.slide_ids]
    column = find_id_column(joined, slide_ids)
    if column is None:
        kept = joined[~joined.astype(str).duplicated()].reset_index(drop=True)
        _say_repeated(len(joined) - len(kept), say)
        return kept
    origin_R = np.repeat(np.arange(len(tables)), [len(table) for _, table in tables])
    rows = _Rows(joined, column, origin_R, [part for part, _ in tables])
    first_R = rows.statements()
    rows.refuse_conflicts(first_R)
    chosen = list(dict.fromkeys(first_R.tolist()))
    _say_repeated(len(joined) - len(chosen), say)
    stored = set(slide_ids)
    unknown = [rows.subjects[row] for row in chosen if rows.subjects[row] not in stored]
    if unknown:
        say(
            f"{len(unknown)} labels without a slide in any of the stores: {first_of(unknown)}; kept, and training "
            "needs data.allow_missing: true"
        )
    return rows.frame().iloc[chosen].reset_index(drop=True)


def _say_repeated(count: int, say: Callable[[str], None]) -> None:
    if count:
        say(f"{count} label rows say again what another row says of the same slide; kept once")


class _Rows:
    """The rows of all tables and what each of them is about.

    Attributes:
        subjects: Per row the slide it is about, or its id as written if that is no slide of any store.
    """

    def __init__(self, joined: pd.DataFrame, column: str, origin_R: np.ndarray, parts: Sequence[LabelPart]) -> None:
        self._joined = joined
        self._column = column
        self._origin: list[int] = origin_R.tolist()
        self._parts = parts
        self._known = SlideNames(slide_id for part in parts for slide_id in part.slide_ids)
        self._ids = joined[column].astype(str).tolist()
        slides = slides_named(self._ids, self._known, "the label tables of the stores")
        self.subjects = [name if slide is None else slide for name, slide in zip(self._ids, slides, strict=True)]

    def frame(self) -> pd.DataFrame:
        """The rows with stored slide ids."""
        if self._ids == self.subjects:
            return self._joined
        return self._joined.assign(**{self._column: pd.Series(self.subjects, dtype=object)})

    def statements(self) -> np.ndarray:
        """Per row the row that stands for its slide; in the order in which the slides appear, (R,)."""
        owners = {slide_id: number for number, part in enumerate(self._parts) for slide_id in part.slide_ids}
        first: dict[str, int] = {}
        own: dict[str, int] = {}
        for row, (subject, origin) in enumerate(zip(self.subjects, self._origin, strict=True)):
            first.setdefault(subject, row)
            if owners.get(subject) == origin:
                own.setdefault(subject, row)
        return np.array([own.get(subject, first[subject]) for subject in self.subjects], dtype=np.int64)

    def refuse_conflicts(self, first_R: np.ndarray) -> None:
        """Refuse rows that differ from the one that stands for their slide.

        Raises:
            DataError: There are some; slide, column and both values are named.
        """
        conflicts: dict[str, tuple[int, int, str]] = {}
        for name in self._joined.columns:
            if name == self._column:
                continue
            texts_R = np.array([self._comparable(text) for text in self._joined[name].astype(str)], dtype=object)
            for row in np.flatnonzero(texts_R != texts_R[first_R]).tolist():
                conflicts.setdefault(self.subjects[row], (int(first_R[row]), row, str(name)))
        if not conflicts:
            return
        shown = [
            f"{subject} ({name}: {self._joined[name].iloc[first]} in {self._source(first)}, "
            f"{self._joined[name].iloc[other]} in {self._source(other)})"
            for subject, (first, other, name) in conflicts.items()
        ]
        raise DataError(
            f"{self._source(next(iter(conflicts.values()))[1])}: {len(conflicts)} slides have label rows that differ: "
            f"{first_of(shown)}; correct one of the tables"
        )

    def _comparable(self, text: str) -> str:
        """A slide under another of its names is the same value."""
        slides = self._known.named_by(text)
        return slides[0] if len(slides) == 1 else text

    def _source(self, row: int) -> str:
        return self._parts[self._origin[row]].source


def _concatenated(tables: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    first_source, first = tables[0]
    pieces = []
    for source, table in tables:
        lacking = [str(name) for name in first.columns if name not in table.columns]
        more = [str(name) for name in table.columns if name not in first.columns]
        if lacking or more:
            names = lacking or more
            has, has_not = (first_source, source) if lacking else (source, first_source)
            raise DataError(
                f"label tables differ: {has} has columns that {has_not} does not have: {first_of(names)}; convert one "
                "of them again with a table of the same columns"
            )
        pieces.append(pa.Table.from_pandas(_plain(table), preserve_index=False))
    for (source, _), piece in zip(tables, pieces, strict=True):
        for name in piece.column_names:
            _check_kinds(name, (first_source, pieces[0].schema.field(name)), (source, piece.schema.field(name)))
    frame: pd.DataFrame = pa.concat_tables(pieces, promote_options="permissive").to_pandas()
    return frame


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its categories written out, which differ between tables."""
    categories = [name for name in table.columns if isinstance(table[name].dtype, pd.CategoricalDtype)]
    return table.astype(dict.fromkeys(categories, object))


def _check_kinds(name: str, first: tuple[str, pa.Field], other: tuple[str, pa.Field]) -> None:
    try:
        pa.unify_schemas([pa.schema([first[1]]), pa.schema([other[1]])], promote_options="permissive")
    except pa.ArrowException:
        raise DataError(
            f"{other[0]}: label column {name!r} is {other[1].type}, but in {first[0]} it is {first[1].type}; convert "
            "one of them again with a table in which the column is of the same kind"
        ) from None
