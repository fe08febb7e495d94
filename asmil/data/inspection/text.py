"""Figures of a store as sections of named lines, drawn as tables on a terminal and as plain text elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asmil.data.inspection.features import DependenceFigures
from asmil.data.inspection.figures import StoreFigures
from asmil.data.inspection.labels import ColumnFigures, LabelFigures, OutcomeFigures
from asmil.data.inspection.lengths import LengthFigures
from asmil.data.inspection.splits import SplitFigures
from asmil.data.labels import first_of

__all__ = ["Section", "print_sections", "sections"]

_BAR_WIDTH = 40
_SHOWN_COLUMNS = 20
_SHOWN_FOLDS = 10
_FINDINGS = "before training"


@dataclass(frozen=True)
class Section:
    """A heading and lines of a name and what there is to say."""

    title: str
    lines: tuple[tuple[str, str], ...]


def sections(figures: StoreFigures) -> Iterator[Section]:
    """What to print, in order."""
    yield Section(figures.store, tuple(_facts(figures)))
    yield Section("instances per bag", tuple(_lengths(figures.lengths)))
    if figures.labels is not None:
        made = figures.facts["provenance"].get("labels", {}).get("outcome")
        yield Section("labels", tuple(_labels(figures.labels, made)))
    if figures.splits is not None:
        yield Section("imported splits", tuple(_splits(figures.splits)))
    yield Section("features", tuple(_features(figures)))
    if figures.findings:
        yield Section(_FINDINGS, tuple(("!", finding.message) for finding in figures.findings))


def print_sections(figures: StoreFigures, file: TextIO) -> None:
    """Write all sections: with rules and colours on a terminal, one line of text each elsewhere."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        for line in _plain(figures):
            file.write(f"{line}\n")
        return
    if figures.facts["simulated"]:
        console.print(Text(" SIMULATED: these data were made up ", style="bold black on yellow"))
    for section in sections(figures):
        warns = section.title == _FINDINGS
        table = Table(
            title=Text(section.title, style="bold yellow" if warns else "bold"),
            title_justify="left", box=SIMPLE_HEAD, show_header=False, pad_edge=False,
        )  # fmt: skip
        table.add_column(style="yellow" if warns else "cyan", no_wrap=True)
        table.add_column()
        for name, text in section.lines:
            table.add_row(Text(name), Text(text))
        console.print(table)


def _plain(figures: StoreFigures) -> Iterator[str]:
    if figures.facts["simulated"]:
        yield "SIMULATED: these data were made up"
    for section in sections(figures):
        yield section.title
        width = max(len(name) for name, _ in section.lines)
        yield from (f"  {name:<{width}}  {text}" for name, text in section.lines)


# --- sections ---


def _facts(figures: StoreFigures) -> Iterator[tuple[str, str]]:
    facts, sizes = figures.facts, figures.sizes
    yield "bags", f"{sizes.bags:,} with {sizes.instances:,} instances"
    yield "features", f"{facts['num_features']} x {facts['dtype']}, encoder {facts['encoder'] or 'not known'}"
    yield "resolution", _resolution(figures)
    if facts["coord_dtype"] is None:
        yield "coordinates", "none"
    else:
        unit, origin = facts["coord_unit"] or "unit not known", facts["coord_origin"] or "origin not known"
        yield "coordinates", f"{facts['coord_dtype']}, {unit}, {origin} of a tile"
    if facts["has_instance_labels"]:
        yield "instance labels", "a truth for every instance"
    size = f"{_bytes(sizes.shard_bytes)} in {sizes.shards} shards, {_bytes(sizes.feature_bytes)} of them features"
    yield "size", size
    yield "made from", _provenance(figures)
    for name, value in facts["facts"].items():
        yield name, str(value)
    yield "data id", f"{facts['dataset_id'][:16]}, {facts['format']}"


def _resolution(figures: StoreFigures) -> str:
    facts = figures.facts
    parts = [
        f"{facts[name]:g} {unit}"
        for name, unit in (("mpp", "µm/px"), ("magnification", "x"), ("tile_size", "px tiles"))
        if facts[name] is not None
    ]
    return ", ".join(parts).replace(" x", "x") or "not known"


def _provenance(figures: StoreFigures) -> str:
    found = figures.facts["provenance"]
    parts = [str(found.get("format", "not known"))]
    if "num_files" in found:
        parts.append(f"{found['num_files']} files")
    parts += [f"{len(found[key])} {what}" for key, what in _LEFT_OUT if found.get(key)]
    if "converter" in found:
        parts.append(f"by {found['converter']}")
    return ", ".join(parts)


_LEFT_OUT = (("no_tissue", "without tissue"), ("left_out", "left out"), ("clipped", "clipped"), ("parts", "stores"))


def _bytes(number: int) -> str:
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _lengths(lengths: LengthFigures) -> Iterator[tuple[str, str]]:
    yield "median", f"{lengths.median:,.0f} (quartiles {lengths.quartile_1:,.0f} and {lengths.quartile_3:,.0f})"
    yield "range", f"{lengths.shortest:,} to {lengths.longest:,}, mean {lengths.mean:,.1f}"
    most = max(part.bags for part in lengths.bins)
    names = [f"{part.low:,}" if part.low == part.high else f"{part.low:,} to {part.high:,}" for part in lengths.bins]
    width = max(map(len, names))
    for name, part in zip(names, lengths.bins, strict=True):
        bar = "#" * max(round(_BAR_WIDTH * part.bags / most), part.bags > 0)
        yield f"{name:>{width}}", f"{bar:<{_BAR_WIDTH}} {part.bags:,}"


def _labels(labels: LabelFigures, made: str | None) -> Iterator[tuple[str, str]]:
    yield "rows", f"{labels.rows:,}, slide ids in {labels.id_column!r}"
    groups = labels.groups
    if groups is not None:
        each = ", ".join(f"{number:,} with {size}" for size, number in list(groups.slides_per_group.items())[:8])
        more = " and others with more" if len(groups.slides_per_group) > 8 else ""
        yield "groups", f"{groups.groups:,} in {groups.column!r}; slides of a group: {each}{more}"
    if labels.outcome is not None:
        yield "outcome", _outcome(labels.outcome, "slides" if groups is None else "groups")
        if made is not None:
            yield "made as", made
    for column in labels.columns[:_SHOWN_COLUMNS]:
        yield column.name, _column(column)
    if len(labels.columns) > _SHOWN_COLUMNS:
        yield "…", f"and {len(labels.columns) - _SHOWN_COLUMNS} more columns; --json has them all"


def _outcome(outcome: OutcomeFigures, units: str) -> str:
    def shown(value: float | None) -> str:
        return "not reached" if value is None else f"{value:.2f} {outcome.time_unit or ''}".rstrip()

    return (
        f"{outcome.units:,} {units}, {outcome.events:,} events ({100 * outcome.event_rate:.1f} %), median follow-up "
        f"{shown(outcome.median_follow_up)}, median survival {shown(outcome.median_survival)}"
    )


def _column(column: ColumnFigures) -> str:
    missing = f", {column.missing:,} missing" if column.missing else ""
    if column.counts is not None:
        return ", ".join(f"{name}: {count:,}" for name, count in column.counts.items()) + missing
    if column.median is not None:
        return f"{column.low:g} to {column.high:g}, median {column.median:g}{missing}"
    return f"{column.distinct:,} {column.kind}{missing}"


def _splits(splits: SplitFigures) -> Iterator[tuple[str, str]]:
    kind = "repeated holdouts" if splits.repeated_holdouts else f"{len(splits.folds)} folds"
    again = f", {splits.tested_more_than_once:,} of them more than once" if splits.tested_more_than_once else ""
    yield "source", f"{splits.layout}: {first_of(splits.files, limit=3)}"
    yield "kind", f"{kind}, testing {splits.tested:,} slides{again}; use them with protocol.scheme: given"
    for fold in splits.folds[:_SHOWN_FOLDS]:
        left_out = f", {fold.in_no_part:,} in no part" if fold.in_no_part else ""
        yield fold.name, f"{fold.train:,} train, {fold.val:,} val, {fold.test:,} test{left_out}"
    if len(splits.folds) > _SHOWN_FOLDS:
        yield "…", f"and {len(splits.folds) - _SHOWN_FOLDS} more"


def _features(figures: StoreFigures) -> Iterator[tuple[str, str]]:
    features = figures.features
    which = "all" if features.is_complete else "random; --all reads every one"
    yield "bags read", f"{features.bags:,} of {figures.sizes.bags:,} ({which})"
    yield (
        "values",
        (
            f"mean {features.mean:.4g}, sd {features.sd:.4g}, largest magnitude {features.largest:.4g}, "
            f"{100 * features.zero_share:.2f} % exactly 0"
        ),
    )
    yield "rows", f"{features.repeated_rows:,} repeated within their bag, {features.zero_rows:,} all 0"
    yield "affinely dependent", _dependence(features.dependence, figures.facts["num_features"])
    pairs: Sequence[tuple[str, ...]] = figures.duplicates
    yield "same features", f"{len(pairs)} groups of slides" if pairs else "no two slides (by checksum, all bags)"


def _dependence(found: DependenceFigures, num_features: int) -> str:
    why = f"{found.by_count:,} by count (more than {num_features + 1} instances)"
    if found.checked:
        why += f", {found.dependent:,} of {found.checked:,} shorter ones by rank"
    if found.share is None:
        return f"unknown share of the bags: {why}, shorter ones are not in the sample"
    return f"{100 * found.share:.1f} % of the bags{' (estimate)' if found.is_estimate else ''}: {why}"
