"""Rows of label tables and stored slides: exact ids first, documented fallbacks then, and what does not match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sksurv.nonparametric import kaplan_meier_estimator

from asmil.data.config import LabelColumns
from asmil.data.packing.matching import LabelMatcher, LabelOptions
from asmil.data.tables.names import SlideNames
from asmil.data.tables.outcomes import medians
from asmil.errors import DataError
from tests.data.foreign_tables import SLIDES, clam_dataset, mcat_clinical, stamp_tables


def matched(
    table: Path, slides: Sequence[str], columns: LabelColumns | None = None, no_tissue: Sequence[str] = (), **given: Any
) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
    said: list[str] = []
    matcher = LabelMatcher(LabelOptions(table, columns or LabelColumns(), **given), no_tissue, said.append)
    frame = matcher.of_store(slides, {})
    assert frame is not None
    said.extend(matcher.lines_to_use())
    return frame, said, matcher.provenance


def labels(folder: Path, ids: Sequence[str]) -> Path:
    path = folder / "labels.csv"
    pd.DataFrame({"slide": ids, "label": range(len(ids))}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("text", "slides"),
    [
        ("a", ("a",)),
        ("a.svs", ("a",)),
        ("x/y/a.ome.tif", ("a",)),
        (r"C:\slides\a.NDPI", ("a",)),
        ("virchow2/a.h5", ("a",)),
        ("a.svs.h5", ("a",)),
        ("slide_vs.svs", ("slide_vs",)),
        ("b.svs", ("b.svs",)),
        ("b", ("b.svs", "b.tif")),
        ("A", ()),
        ("c", ()),
        ("a.x", ()),
    ],
)
def test_rules_of_names(text: str, slides: tuple[str, ...]) -> None:
    assert SlideNames(("a", "slide_vs", "b.svs", "b.tif")).named_by(text) == slides


def test_exact_ids_win_over_shortened_ones(tmp_path: Path) -> None:
    frame, said, _ = matched(labels(tmp_path, ["b.svs", "b.tif", "q.svs"]), ("b.svs", "b.tif", "q"))
    assert frame["slide"].tolist() == ["b.svs", "b.tif", "q"]
    (line,) = [line for line in said if "3 of 3 slides (100.0 %) have a row" in line]
    assert line.endswith("1 of them without folder and suffix of the id")


def test_ambiguous_ids_are_counted_and_the_first_ten_shown(tmp_path: Path) -> None:
    names = [f"s{number:02d}" for number in range(12)]
    slides = [f"{name}.{suffix}" for name in names for suffix in ("svs", "tif")]
    with pytest.raises(DataError) as caught:
        matched(labels(tmp_path, names), slides)
    message = str(caught.value)
    assert "12 ids could name several slides: 's00' (s00.svs, s00.tif), " in message
    assert "'s09' (s09.svs, s09.tif) and 2 more; write them out" in message
    assert "s10" not in message


def test_rows_of_one_slide_that_differ_are_refused_by_column_and_values(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        matched(labels(tmp_path, ["a", "b", "a"]), ("a", "b"))
    assert "1 slides have more than one row, and the rows differ: 'a' (label: 0 and 2); keep one" in str(caught.value)


def test_rows_that_are_the_same_are_kept_once_and_counted(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide,label,stage\na.svs,0,\nb,1,II\na.svs,0,\nb,1,II\nb,1,II\n")
    frame, said, _ = matched(table, ("a", "b"))
    assert frame[["slide", "label"]].to_numpy().tolist() == [["a", 0], ["b", 1]]
    assert f"{table}: 3 rows repeat an earlier row word for word; kept once" in said
    assert any(line.endswith("1 of them without folder and suffix of the id") for line in said)


def test_what_does_not_match_is_refused_with_counts_and_listed_if_allowed(tmp_path: Path) -> None:
    extra = [f"x{number:02d}.svs" for number in range(11)]
    table, slides = labels(tmp_path, ["a", *extra, "empty.svs"]), ("a", "b", "c")
    with pytest.raises(DataError) as caught:
        matched(table, slides, no_tissue=["empty"])
    message = str(caught.value)
    assert "11 labels without a slide: x00.svs, " in message
    assert "x09.svs and 1 more; 2 slides without a label: b, c; correct" in message
    assert message.endswith("with --allow-missing")
    frame, said, provenance = matched(table, slides, no_tissue=["empty"], allow_missing=True)
    assert provenance["labels"] == {
        "table": str(table),
        "labels_without_a_slide": extra,
        "slides_without_a_label": ["b", "c"],
    }
    assert frame["slide"].tolist() == ["a", *extra]
    assert any("training needs data.allow_missing: true" in line for line in said)


def test_patients_without_slides_are_labels_without_a_slide(tmp_path: Path) -> None:
    clini, slides = stamp_tables(tmp_path)
    pd.read_csv(slides).query("PATIENT != 'TCGA-03'").to_csv(slides, index=False)
    columns = LabelColumns(target="isMSIH")
    stored = [slide for slide in SLIDES if not slide.startswith("TCGA-03")]
    with pytest.raises(DataError, match="1 labels without a slide: TCGA-03; "):
        matched(clini, stored, columns, slide_table=slides)
    _, _, provenance = matched(clini, stored, columns, slide_table=slides, allow_missing=True)
    assert provenance["labels"]["labels_without_a_slide"] == ["TCGA-03"]


def test_slides_whose_outcome_is_missing_are_slides_without_a_label(tmp_path: Path) -> None:
    path = mcat_clinical(tmp_path / "t.csv")
    frame = pd.read_csv(path, index_col=0)
    frame.loc[frame["case_id"] == "TCGA-04", "survival_months"] = np.nan
    frame.to_csv(path)
    columns = LabelColumns(time="survival_months", censor="censorship")
    with pytest.raises(DataError, match="2 slides without a label: TCGA-04-DX1, TCGA-04-DX2; "):
        matched(path, SLIDES, columns)
    frame, said, _ = matched(path, SLIDES, columns, allow_missing=True)
    assert frame["slide_id"].tolist() == [slide for slide in SLIDES if not slide.startswith("TCGA-04")]
    assert any("outcome: 10 slides of 5 patients, 3 events (60.0 %)" in line for line in said)


def test_summary_counts_patients_once_and_gives_the_lines_to_use(tmp_path: Path) -> None:
    columns = LabelColumns(time="survival_months", censor="censorship")
    _, said, provenance = matched(mcat_clinical(tmp_path / "t.csv.zip"), SLIDES, columns)
    assert (
        "outcome: 12 slides of 6 patients, 3 events (50.0 %), median follow-up 31.00 months (reverse Kaplan-Meier), "
        "median survival 10.00 months (Kaplan-Meier)"
    ) in said
    assert said[said.index("use them with:") + 1 :] == [
        "  data:",
        "    labels: {id: slide_id, group: case_id, time: time_months, event: event, covariates: [age]}",
        "  task: {kind: survival, time_unit: months}",
    ]
    assert provenance["labels"]["outcome"] == "event = 1 - censorship, time_months = survival_months"


def test_lines_to_use_of_other_tables_name_what_there_is(tmp_path: Path) -> None:
    classes = clam_dataset(tmp_path / "clam.csv")
    _, said, _ = matched(classes, SLIDES)
    assert said[said.index("use them with:") + 1 :] == [
        "  data:",
        "    labels: {id: slide_id, group: case_id, target: label}",
        "  task: {kind: classification}",
    ]
    own = tmp_path / "own.csv"
    pd.DataFrame({"slide": ["a", "b"], "days": [3, 4], "dead": [1, 0], "age": [50, 60]}).to_csv(own, index=False)
    _, said, _ = matched(own, ("a", "b"), LabelColumns(time="days", event="dead"))
    assert "    labels: {id: slide, time: time_days, event: event}" in said, (
        "an unknown table: its age is not looked for"
    )


def test_medians_are_those_of_kaplan_and_meier() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        time_B, event_B = rng.integers(1, 12, 25).astype(float), rng.integers(0, 2, 25)
        found = []
        for observed_B in (event_B == 0, event_B == 1):
            times, survival = kaplan_meier_estimator(observed_B, time_B)
            below = survival <= 0.5 + 1e-12
            found.append(times[below][0] if below.any() else None)
        assert medians(time_B, event_B) == tuple(found)
