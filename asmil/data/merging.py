"""Label tables of several stores as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from asmil.data.labels import first_of
from asmil.data.tables.names import find_id_column
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
    """The rows of all tables, one table after another.

    A row that an earlier table has word for word is left out: stores are often made with one common label file.

    Args:
        parts: The stores, in order.
        say: Receives every finding, one line each.

    Returns:
        The table, with the columns in the order of the first one; None if no store has labels.

    Raises:
        DataError: Only some stores have labels, their columns differ in name or kind, or two tables give one slide
            different rows.
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
    origin_R = np.repeat(np.arange(len(tables)), [len(table) for _, table in tables])
    kept_R = _first_statements(joined, origin_R)
    if not kept_R.all():
        say(f"{int((~kept_R).sum())} label rows are in several tables word for word; kept once")
    joined, origin_R = joined[kept_R].reset_index(drop=True), origin_R[kept_R]
    slide_ids = [slide_id for part in parts for slide_id in part.slide_ids]
    _refuse_conflicts(joined, origin_R, [part.source for part, _ in tables], find_id_column(joined, slide_ids))
    return joined


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


def _first_statements(joined: pd.DataFrame, origin_R: np.ndarray) -> np.ndarray:
    """True for rows that no earlier table has."""
    owners: dict[tuple[str, ...], int] = {}
    rows = joined.astype(str).itertuples(index=False, name=None)
    return np.array(
        [owners.setdefault(row, origin) == origin for row, origin in zip(rows, origin_R.tolist(), strict=True)]
    )


def _refuse_conflicts(joined: pd.DataFrame, origin_R: np.ndarray, sources: Sequence[str], column: str | None) -> None:
    if column is None:
        return
    owners: dict[str, int] = {}
    conflicts: dict[str, tuple[int, int]] = {}
    for slide_id, origin in zip(joined[column].astype(str), origin_R.tolist(), strict=True):
        owner = owners.setdefault(slide_id, origin)
        if owner != origin:
            conflicts.setdefault(slide_id, (owner, origin))
    if conflicts:
        first, second = next(iter(conflicts.values()))
        raise DataError(
            f"{sources[second]}: {len(conflicts)} slides have other label rows than in another store, the first of "
            f"them than in {sources[first]}: {first_of(list(conflicts))} (column {column!r}); correct one of the tables"
        )
