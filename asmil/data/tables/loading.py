"""From a label file of any known layout to one checked table: one row per slide, ids as text, outcomes normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from asmil.data.config import LabelColumns
from asmil.data.labels import first_of, id_columns, normalise_labels
from asmil.data.tables.layouts import TableLayout, is_gene, recognise
from asmil.data.tables.outcomes import EVENT, OutcomeSource, TimeUnit, add_outcome
from asmil.data.tables.polarity import Asked, advice_on, polarity_warning, question, unit_in_name
from asmil.data.tables.reading import TableFile
from asmil.errors import ConfigError, DataError

__all__ = ["OPTION_NAMES", "LabelOptions", "LabelTable", "load_label_table"]

OPTION_NAMES = {
    **{name: f"--{name}-column" for name in ("id", "group", "target", "time", "event", "censor")},
    "covariates": "the columns",
}
_PARTS_OF_A_FOLDER = ("train.csv", "val.csv", "test.csv")


@dataclass(frozen=True)
class LabelOptions:
    """The tables of a conversion.

    Attributes:
        table: The label file, or a folder of `train.csv` and `test.csv`; None takes the labels the source carries.
        columns: Meaning of its columns; what is not set here is taken from a recognised layout.
        time_unit: Unit of the time column; needed if neither a recognised layout nor the column's name states it.
        slide_table: Table that names the slides of each patient, for a label file with one row per patient.
        splits: Split files or folders to import.
        allow_incomplete_splits: Labelled slides may be in no part of a fold.
        allow_missing: Labels without a slide and slides without a label are listed instead of refused.
    """

    table: Path | None = None
    columns: LabelColumns = field(default_factory=LabelColumns)
    time_unit: TimeUnit | None = None
    slide_table: Path | None = None
    splits: tuple[Path, ...] = ()
    allow_incomplete_splits: bool = False
    allow_missing: bool = False


@dataclass(frozen=True)
class LabelTable:
    """A label table ready to be matched with slides.

    Attributes:
        source: The file, as named in messages.
        frame: One row per slide; ids as text; with an outcome, `event` and `time_<unit>`.
        columns: Meaning of the columns as they are stored; the covariates are ages, beside outcomes of known tables.
        time_unit: Unit of the time, if there is one.
        unused: Patients of the table that have no slide in the slide table.
        polarity: How the outcome was made of the table's columns, if there is one.
    """

    source: str
    frame: pd.DataFrame
    columns: LabelColumns
    time_unit: TimeUnit | None
    unused: tuple[str, ...] = ()
    polarity: str | None = None


def load_label_table(options: LabelOptions, say: Callable[[str], None]) -> LabelTable:
    """Read, recognise and check the label file of a conversion.

    Args:
        options: The file and what is said about it; `table` is not None.
        say: Receives every finding, one line each.

    Raises:
        ConfigError: Options are missing or contradict each other, or a named column is missing.
        DataError: The table cannot be read, or holds ids or outcomes that cannot be used.
    """
    assert options.table is not None
    source = str(options.table)
    files = _open(options.table)
    layout = recognise(files[0].path, files[0].columns)
    columns = _with_defaults(options, layout, source, say)
    frame = pd.concat([_rows(file, columns, layout, say) for file in files], ignore_index=True)
    if frame.empty:
        raise DataError(f"{source}: a header without rows; give --labels a table of slides")
    asked = Asked(source, frame, columns.group, columns.time, layout)
    unit = _checked_unit(options, columns, asked, say)
    if layout is not None and layout.name == "MIL_BASELINE fold":
        frame = _one_row_per_slide(frame, columns.id)
    unused: tuple[str, ...] = ()
    if options.slide_table is not None:
        frame, columns, unused = _with_slides(frame, columns, options, say)
    elif layout is not None and "id" not in layout.columns and columns.id not in frame.columns:
        raise ConfigError(
            f"{source}: {layout.name} names no slides; give --slide-table TABLE, the table that lists the slides of "
            "each patient, or --id-column"
        )
    frame = normalise_labels(frame, columns, source, options=OPTION_NAMES)
    if unit is None:
        if (advice := advice_on(asked)) is not None:
            say(advice)
        return LabelTable(source, frame, columns, None, unused)
    return _with_outcome(LabelTable(source, frame, columns, unit, unused), layout, say)


def _open(path: Path) -> list[TableFile]:
    if not path.is_dir():
        return [TableFile.open(path)]
    files = [TableFile.open(path / name) for name in _PARTS_OF_A_FOLDER if (path / name).is_file()]
    if not files:
        raise DataError(f"{path}: a folder without {', '.join(_PARTS_OF_A_FOLDER)}; give --labels a table")
    for file in files[1:]:
        if set(file.columns) != set(files[0].columns):
            raise DataError(f"{file.path}: its columns differ from those of {files[0].path}; correct one of them")
    return files


def _with_defaults(
    options: LabelOptions, layout: TableLayout | None, source: str, say: Callable[[str], None]
) -> LabelColumns:
    if layout is None:
        return options.columns
    given = options.columns.model_fields_set
    taken = {name: value for name, value in layout.columns.items() if name not in given}
    if options.slide_table is not None:
        taken.pop("id", None)
    words = " ".join(f"{OPTION_NAMES[name]} {value}" for name, value in taken.items())
    say(f"{source}: {layout.describe()}" + (f"; takes {words}" if words else ""))
    return options.columns.model_copy(update=taken)


def _checked_unit(
    options: LabelOptions, columns: LabelColumns, asked: Asked, say: Callable[[str], None]
) -> TimeUnit | None:
    """The unit of the outcome, whose polarity is named; None if no outcome is wanted."""
    mark, source = columns.event or columns.censor, asked.source
    advice = f"; for this table: {' or '.join(hint.words() for hint in asked.hints)}" if asked.hints else ""
    if columns.time is None:
        if mark is not None or options.time_unit is not None:
            what = f"{mark!r} marks events or censoring" if mark is not None else "--time-unit is given"
            raise ConfigError(f"{source}: {what}, but no time is named; give --time-column and --time-unit{advice}")
        if asked.hints and columns.target is None:
            raise question(asked)
        return None
    if mark is None:
        raise question(asked)
    stated = next((hint.unit for hint in asked.hints), None) or unit_in_name(columns.time)
    if options.time_unit is not None:
        if stated not in (None, options.time_unit):
            say(f"warning: --time-unit {options.time_unit} was given, but {columns.time!r} should be in {stated}")
        return options.time_unit
    if stated is None:
        raise ConfigError(
            f"{source}: --time-column {columns.time} needs --time-unit days, months or years: its name does not say, "
            "and the unit is stored with the time"
        )
    say(f"{source}: {columns.time!r} is taken to be in {stated}; --time-unit would say otherwise")
    return stated


def _rows(
    file: TableFile, columns: LabelColumns, layout: TableLayout | None, say: Callable[[str], None]
) -> pd.DataFrame:
    keep = list(file.columns)
    if layout is not None and layout.has_genes:
        named = {getattr(columns, name) for name in OPTION_NAMES if name != "covariates"}
        keep = [name for name in file.columns if name in named or not is_gene(name)]
        if len(keep) < len(file.columns):
            say(f"{len(file.columns) - len(keep)} columns of genes (*_cnv, *_mut, *_rnaseq) are left out of the table")
    return file.frame(keep, text={*id_columns(columns), "train_slide_path", "val_slide_path", "test_slide_path"})


def _one_row_per_slide(frame: pd.DataFrame, id_column: str) -> pd.DataFrame:
    """The slides of a MIL_BASELINE fold, whose parts lie side by side."""
    parts = []
    for part in ("train", "val", "test"):
        if {f"{part}_slide_path", f"{part}_label"} <= set(frame.columns):
            rows = frame[[f"{part}_slide_path", f"{part}_label"]].set_axis([id_column, "label"], axis=1)
            parts.append(rows[rows[id_column] != ""])
    labels = pd.concat(parts, ignore_index=True)
    whole = labels["label"].dropna()
    if len(whole) == len(labels) and pd.api.types.is_float_dtype(whole) and (whole % 1 == 0).all():
        labels["label"] = whole.astype("int64")  # ragged columns made them floats
    return labels


def _with_slides(
    frame: pd.DataFrame, columns: LabelColumns, options: LabelOptions, say: Callable[[str], None]
) -> tuple[pd.DataFrame, LabelColumns, tuple[str, ...]]:
    """Join a table of patients with the table that names their slides; the patients without slides are named."""
    assert options.slide_table is not None
    path, group = options.slide_table, columns.group
    if group is None:
        raise ConfigError(f"{path}: --slide-table needs --group-column, the column of patient ids in both tables")
    file = TableFile.open(path)
    layout = recognise(path, file.columns)
    if layout is not None and "id" not in options.columns.model_fields_set and "id" in layout.columns:
        columns = columns.model_copy(update={"id": layout.columns["id"]})
        say(f"{path}: {layout.describe()}; takes {OPTION_NAMES['id']} {columns.id}")
    slides = normalise_labels(
        file.frame([columns.id, group], text=id_columns(columns)), LabelColumns(id=columns.id, group=group),
        str(path), options=OPTION_NAMES,
    )  # fmt: skip
    patients = normalise_labels(frame, LabelColumns(id=group), str(options.table), options={"id": "--group-column"})
    twice = list(patients[group][patients[group].duplicated()].unique())
    if twice:
        raise DataError(
            f"{options.table}: {len(twice)} patients have more than one row: {first_of(twice)}; keep one row each"
        )
    unlabelled = sorted(set(slides[group].dropna()) - set(patients[group]))
    if unlabelled:
        say(f"{len(unlabelled)} patients of {path} have no row in the labels: {first_of(unlabelled)}")
    joined = slides.merge(patients.drop(columns=columns.id, errors="ignore"), on=group, how="inner")
    if joined.empty:
        raise DataError(f"{path}: no patient of it is in {options.table}; check --group-column {group}")
    return joined, columns, tuple(sorted(set(patients[group]) - set(slides[group])))


def _with_outcome(table: LabelTable, layout: TableLayout | None, say: Callable[[str], None]) -> LabelTable:
    columns, source = table.columns, table.source
    mark = columns.event or columns.censor
    assert columns.time is not None
    assert table.time_unit is not None
    assert mark is not None
    outcome = OutcomeSource(columns.time, table.time_unit, mark, columns.censor is not None)
    warning = polarity_warning(mark, outcome.marks_censoring, layout)
    if warning is not None:
        say(warning)
    frame, without = add_outcome(table.frame, outcome, list(table.frame[columns.id]), source)
    if without:
        say(f"{len(without)} rows of {source} have no time or no status and are left out: {first_of(without)}")
    if columns.group is not None:
        _refuse_contradictions(frame, columns.group, outcome, source)
    covariates = () if layout is None else _ages(frame)
    stored = columns.model_copy(
        update={"time": outcome.time_name, "event": EVENT, "censor": None, "covariates": covariates}
    )
    polarity = f"{EVENT} = {f'1 - {mark}' if outcome.marks_censoring else mark}, {outcome.time_name} = {outcome.time}"
    return replace(table, frame=frame, columns=stored, polarity=polarity)


def _ages(frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns of ages, which a clinical baseline can use in every known table."""
    named = [str(name) for name in frame.columns if str(name).lower() == "age"]
    return tuple(name for name in named if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].notna().any())


def _refuse_contradictions(frame: pd.DataFrame, group: str, outcome: OutcomeSource, source: str) -> None:
    distinct = frame[[group, outcome.time_name, EVENT]].drop_duplicates().groupby(group).size()
    names: Sequence[str] = [str(name) for name in distinct.index[distinct > 1]]
    if names:
        raise DataError(
            f"{source}: the rows of {len(names)} patients differ in {outcome.time!r} or {outcome.mark!r}: "
            f"{first_of(names)}; the outcome belongs to the patient, so correct the table"
        )
