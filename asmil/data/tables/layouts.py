"""Label tables of other tools, recognised by their columns: what their ids, groups, classes and outcomes are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asmil.config import load_yaml
from asmil.data.labels import first_of
from asmil.data.tables.outcomes import TimeUnit
from asmil.errors import ConfigError

__all__ = ["OutcomeHint", "TableLayout", "is_gene", "recognise"]

_GENE = re.compile(r".*_(cnv|mut|rnaseq|rna)")


@dataclass(frozen=True)
class OutcomeHint:
    """Columns that look like an outcome.

    Attributes:
        time: Column of the follow-up time.
        unit: Its unit.
        option: `--event-column` or `--censor-column`.
        mark: Column for that option.
    """

    time: str
    unit: TimeUnit
    option: str
    mark: str

    def words(self) -> str:
        """The options to give."""
        return f"--time-column {self.time} --time-unit {self.unit} {self.option} {self.mark}"


@dataclass(frozen=True)
class TableLayout:
    """A recognised table.

    Attributes:
        name: The tool, and which of its tables it is.
        because: The columns it was recognised by.
        columns: Defaults by field of `LabelColumns`: `id`, `group`, `target`.
        outcomes: Outcomes it seems to hold; never taken unasked, because polarity has to be named.
        has_genes: Whether columns of single genes follow the clinical ones.
    """

    name: str
    because: tuple[str, ...]
    columns: Mapping[str, str]
    outcomes: tuple[OutcomeHint, ...] = ()
    has_genes: bool = field(default=False)

    def describe(self) -> str:
        """What it is and why."""
        return f"{self.name}, because it has columns {first_of(self.because)}"


def is_gene(column: str) -> bool:
    """Whether a column of a clinical table holds a copy number, mutation or expression of one gene."""
    return _GENE.fullmatch(column) is not None


def recognise(path: Path, columns: Sequence[str]) -> TableLayout | None:
    """The layout of a label table; None if it is no known one.

    Args:
        path: The file; Patho-Bench keeps a `config.yaml` beside it.
        columns: Names of its columns.
    """
    has = frozenset(columns)
    for attempt in (_patho_bench, _mmp, _survpath, _mcat, _mil_baseline, _stamp, _torchmil, _clam):
        layout = attempt(path, has)
        if layout is not None:
            return layout
    return None


def _slide_and_case(has: frozenset[str]) -> dict[str, str]:
    return {field: name for field, name in (("id", "slide_id"), ("group", "case_id")) if name in has}


def _hints(has: frozenset[str], found: Sequence[OutcomeHint]) -> tuple[OutcomeHint, ...]:
    return tuple(hint for hint in found if {hint.time, hint.mark} <= has)


def _patho_bench(path: Path, has: frozenset[str]) -> TableLayout | None:
    folds = sorted(name for name in has if re.fullmatch(r"fold_\d+", name))
    if not folds or not has & {"case_id", "slide_id"}:
        return None
    events = [name.removesuffix("_event") for name in sorted(has) if name.endswith("_event")]
    outcomes = _hints(has, [OutcomeHint(f"{task}_days", "days", "--event-column", f"{task}_event") for task in events])
    columns = _slide_and_case(has)
    target = _configured_task(path.with_name("config.yaml"))
    if target in has and not outcomes:  # the label column of a survival task holds codes of a fixed binning
        columns["target"] = str(target)
    return TableLayout("Patho-Bench task", (*sorted(has & {"case_id", "slide_id"}), folds[0]), columns, outcomes)


def _configured_task(path: Path) -> object:
    try:
        return load_yaml(path).get("task_col") if path.is_file() else None
    except ConfigError:  # someone else's file, and only a default is lost
        return None


def _mmp(path: Path, has: frozenset[str]) -> TableLayout | None:
    kinds = [kind for kind in ("os", "dss", "dfi", "pfi") if f"{kind}_survival_days" in has]
    if not kinds:
        return None
    found = [OutcomeHint(f"{kind}_survival_days", "days", "--censor-column", f"{kind}_censorship") for kind in kinds]
    columns = _slide_and_case(has)
    return TableLayout("MMP/PANTHER clinical table", tuple(hint.time for hint in found), columns, _hints(has, found))


def _survpath(path: Path, has: frozenset[str]) -> TableLayout | None:
    kinds = [kind for kind in ("", "_dss", "_pfi") if f"survival_months{kind}" in has]
    if not {"case_id", "slide_id"} <= has or len(kinds) < 2:
        return None
    found = [OutcomeHint(f"survival_months{kind}", "months", "--censor-column", f"censorship{kind}") for kind in kinds]
    columns = _slide_and_case(has)
    return TableLayout("SurvPath metadata", tuple(hint.time for hint in found), columns, _hints(has, found), True)


def _mcat(path: Path, has: frozenset[str]) -> TableLayout | None:
    wanted = ("case_id", "slide_id", "survival_months", "censorship")
    if not has.issuperset(wanted):
        return None
    hints = _hints(has, [OutcomeHint("survival_months", "months", "--censor-column", "censorship")])
    return TableLayout("MCAT/PORPOISE clinical table", wanted, _slide_and_case(has), hints, True)


def _mil_baseline(path: Path, has: frozenset[str]) -> TableLayout | None:
    wanted = ("train_slide_path", "train_label", "test_slide_path", "test_label")
    return TableLayout("MIL_BASELINE fold", wanted, {"target": "label"}) if has.issuperset(wanted) else None


def _stamp(path: Path, has: frozenset[str]) -> TableLayout | None:
    if "PATIENT" not in has:
        return None
    if "FILENAME" in has:
        return TableLayout("STAMP slide table", ("PATIENT", "FILENAME"), {"id": "FILENAME", "group": "PATIENT"})
    return TableLayout("STAMP clini table", ("PATIENT",), {"group": "PATIENT"})


def _torchmil(path: Path, has: frozenset[str]) -> TableLayout | None:
    return TableLayout("torchmil table", ("bag_name",), {"id": "bag_name"}) if "bag_name" in has else None


def _clam(path: Path, has: frozenset[str]) -> TableLayout | None:
    wanted = ("case_id", "slide_id")
    if not has.issuperset(wanted):
        return None
    columns = _slide_and_case(has) | ({"target": "label"} if "label" in has else {})
    return TableLayout("CLAM dataset table", (*wanted, *(["label"] if "label" in has else [])), columns)
