"""What a user should know before training on a store: each finding with the slides it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asmil.data.config import DataConfig
from asmil.data.inspection.features import FeatureFigures
from asmil.data.inspection.labels import LabelFigures
from asmil.data.labels import first_of
from asmil.data.schema import DatasetInfo
from asmil.data.tables.given import GivenFold, GivenSplits

__all__ = ["Finding", "Findings"]

LONG_BAG = int(DataConfig.model_fields["batch_instances"].default)


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: Its name, for programs.
        message: One sentence; it names at most ten slides.
        slides: All slides it is about; empty if it is about the store.
    """

    kind: str
    message: str
    slides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """What the findings are made from.

    Attributes:
        info: Content of `dataset.json`.
        lengths: Instances of each slide.
        labels: Figures of the label table.
        groups: Patient of each labelled slide, if the column of patients is known.
        duplicates: Groups of slides with the same features.
        features: Figures of the sampled features.
        splits: The imported splits.
    """

    info: DatasetInfo
    lengths: Mapping[str, int]
    labels: LabelFigures | None
    groups: Mapping[str, str]
    duplicates: Sequence[tuple[str, ...]]
    features: FeatureFigures
    splits: GivenSplits | None

    def all(self) -> Iterator[Finding]:
        """All findings, the gravest first."""
        yield from self._of_duplicates()
        yield from self._of_labels()
        yield from self._of_lengths()
        yield from self._of_features()
        yield from self._of_facts()

    def _of_duplicates(self) -> Iterator[Finding]:
        between: list[tuple[str, ...]] = []
        within: list[tuple[str, ...]] = []
        for slide_ids in self.duplicates:
            owners = {self.groups.get(slide_id, slide_id) for slide_id in slide_ids}
            (between if len(owners) > 1 else within).append(slide_ids)
        whose = "different patients" if self.groups else "different ids"
        for kind, sets, text in (
            ("duplicates_between_patients", between, f"the same features under {whose}, which can lie in two parts"),
            ("duplicates_within_patients", within, "the same features twice in one patient"),
        ):
            if sets:
                named = first_of([" = ".join(slide_ids) for slide_ids in sets])
                yield Finding(kind, f"{len(sets)} times {text}: {named}", tuple(name for ids in sets for name in ids))
        torn = [ids for ids in self.duplicates if any(len(_parts(fold, ids)) > 1 for fold in self._folds())]
        if torn:
            named = first_of([" = ".join(slide_ids) for slide_ids in torn])
            slides = tuple(name for ids in torn for name in ids)
            yield Finding("duplicates_in_two_parts", f"the imported splits have {named} in two parts of a fold", slides)

    def _folds(self) -> Sequence[GivenFold]:
        return () if self.splits is None else self.splits.folds

    def _of_labels(self) -> Iterator[Finding]:
        labels = self.labels
        if labels is None:
            yield Finding("no_labels", "no label table: name one under data.labels.table, or convert with --labels")
            return
        if labels.id_column is None:
            yield Finding("no_id_column", "no column of the label table holds stored slide ids")
            return
        for kind, slides, what in (
            ("bags_without_label", labels.bags_without_label, "slides have no label"),
            ("labels_without_bag", labels.labels_without_bag, "labels have no slide"),
        ):
            if slides:
                advice = "training refuses them unless data.allow_missing: true"
                yield Finding(kind, f"{len(slides)} {what}: {first_of(slides)}; {advice}", slides)
        groups = labels.groups
        if groups is None:
            yield Finding("no_groups", "no column of patients was found: name it with --group-column if there is one")
        elif groups.slides_without:
            message = f"{groups.slides_without} slides have no value in the group column {groups.column!r}"
            yield Finding("slides_without_group", message)

    def _of_lengths(self) -> Iterator[Finding]:
        single = tuple(slide_id for slide_id, length in self.lengths.items() if length == 1)
        if single:
            message = f"{len(single)} bags have a single instance, so there is nothing to attend to: {first_of(single)}"
            yield Finding("single_instance", message, single)
        long = {slide_id: length for slide_id, length in self.lengths.items() if length > LONG_BAG}
        if long:
            longest = sorted(long, key=lambda slide_id: -long[slide_id])
            named = first_of([f"{slide_id} ({long[slide_id]:,})" for slide_id in longest])
            message = f"{len(long)} bags have more than {LONG_BAG:,} instances and fill a micro-batch each: {named}"
            yield Finding("very_long", message, tuple(longest))

    def _of_features(self) -> Iterator[Finding]:
        figures, where = self.features, "" if self.features.is_complete else " of the sample"
        constant = figures.constant_columns
        if constant and figures.instances > 1:
            named = first_of([str(column) for column in constant])
            message = f"{len(constant)} of {self.info.num_features} features never change{where}: {named}"
            yield Finding("constant_features", message)
        for kind, slides, what in (
            ("zero_rows", figures.bags_with_zero_rows, "hold instances whose features are all 0"),
            ("repeated_rows", figures.bags_with_repeated_rows, "hold the same instance more than once"),
        ):
            if slides:
                yield Finding(kind, f"{len(slides)} bags{where} {what}: {first_of(slides)}", slides)

    def _of_facts(self) -> Iterator[Finding]:
        info = self.info
        if info.coord_dtype is None:
            yield Finding("no_coordinates", "no coordinates: attention cannot be shown on the slide")
        elif info.coord_unit is None:
            yield Finding("no_coordinate_unit", "the unit of the coordinates is not known")
        lacking = [name for name, value in (("encoder", info.encoder), ("resolution", _resolution(info))) if not value]
        if lacking and info.coord_dtype is not None:  # classic sets have neither tiles nor an encoder
            advice = "state them in the conversion (--encoder, --mpp), so that only like is joined with like"
            yield Finding("unknown_facts", f"{' and '.join(lacking)} of the features not known; {advice}")
        left_out = info.provenance.get("left_out")
        if isinstance(left_out, Mapping) and left_out:
            named = tuple(str(name) for name in left_out)
            yield Finding("left_out", f"{len(named)} files were left out in the conversion: {first_of(named)}", named)


def _parts(fold: GivenFold, slide_ids: Sequence[str]) -> set[str]:
    return {part for part, members in fold.parts().items() if set(slide_ids).intersection(members)}


def _resolution(info: DatasetInfo) -> float | None:
    return info.mpp if info.mpp is not None else info.magnification
