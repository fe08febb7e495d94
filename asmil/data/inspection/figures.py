"""All figures of a store: what `python -m asmil.data.inspect` shows, and writes as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from asmil.data.inspection.duplicates import same_features
from asmil.data.inspection.features import FeatureFigures, draw_bags, scan_features
from asmil.data.inspection.findings import Finding, Findings
from asmil.data.inspection.labels import LabelFigures, summarise_labels
from asmil.data.inspection.lengths import LengthFigures, summarise_lengths
from asmil.data.inspection.splits import SplitFigures, summarise_splits
from asmil.data.schema import SPLITS_FILE
from asmil.data.store import BagStore
from asmil.data.tables.given import GivenSplits

__all__ = ["SizeFigures", "StoreFigures", "inspect_store"]

FORMAT = "asmil-inspect/1"
_NOT_SHOWN = {"shards", "index_sha256", "labels_sha256", "splits_sha256"}


@dataclass(frozen=True)
class SizeFigures:
    """How large the store is.

    Attributes:
        bags: Stored slides.
        instances: Their instances.
        shards: Shard files.
        shard_bytes: Bytes of the shard files.
        feature_bytes: Bytes of the features alone.
    """

    bags: int
    instances: int
    shards: int
    shard_bytes: int
    feature_bytes: int


@dataclass(frozen=True)
class StoreFigures:
    """Everything that is known of a store; its fields are the keys of the JSON, all the way down.

    Attributes:
        format: Version of these figures.
        store: Where it is.
        facts: `dataset.json` without hashes and shards: format, num_features, dtype, encoder, mpp, provenance, …
        sizes: Sizes.
        lengths: Distribution of the bag lengths.
        labels: The label table; None if there is none.
        splits: The imported splits; None if there are none.
        features: What the features are like, from the bags that were read.
        duplicates: Groups of slides with the same features, byte for byte.
        findings: What to know before training, the gravest first.
    """

    format: str
    store: str
    facts: dict[str, Any]
    sizes: SizeFigures
    lengths: LengthFigures
    labels: LabelFigures | None
    splits: SplitFigures | None
    features: FeatureFigures
    duplicates: tuple[tuple[str, ...], ...]
    findings: tuple[Finding, ...]

    def tree(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def inspect_store(
    uri: str,
    *,
    sample: int | None,
    group_column: str | None = None,
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> StoreFigures:
    """Work out all figures of a store; one bag is in memory at a time.

    Args:
        uri: Where the store is.
        sample: How many bags are read for the figures of the features, drawn at random; None reads all.
        group_column: Column of patients, where it has none of the usual names.
        watch: Receives the bags to read and gives them back, to show how far it is.

    Raises:
        DataError: There is no store.
        ConfigError: The label table has no column `group_column`.
        IntegrityError: Something that was read is damaged.
    """
    store = BagStore.open(uri)
    info, slide_ids = store.info, store.slide_ids
    table, given = store.labels(), _given_splits(store, uri)
    labels = None if table is None else summarise_labels(table, slide_ids, group_column=group_column)
    drawn = slide_ids if sample is None else draw_bags(slide_ids, sample)
    features = scan_features(store, watch(drawn))
    lengths = {slide_id: store.length(slide_id) for slide_id in slide_ids}
    duplicates = tuple(same_features([store]))
    groups = _groups(table, labels)
    findings = Findings(info, lengths, labels, groups, duplicates, features, given)
    return StoreFigures(
        format=FORMAT,
        store=uri,
        facts=info.model_dump(mode="json", exclude=_NOT_SHOWN),
        sizes=SizeFigures(
            bags=info.num_bags,
            instances=info.num_instances,
            shards=len(info.shards),
            shard_bytes=sum(shard.bytes for shard in info.shards),
            feature_bytes=sum(store.index.row(slide_id).feat_nbytes for slide_id in slide_ids),
        ),
        lengths=summarise_lengths(list(lengths.values())),
        labels=labels,
        splits=None if given is None else summarise_splits(given, slide_ids),
        features=features,
        duplicates=duplicates,
        findings=tuple(findings.all()),
    )


def _given_splits(store: BagStore, uri: str) -> GivenSplits | None:
    content = store.given_splits()
    return None if content is None else GivenSplits.from_bytes(content, f"{uri}/{SPLITS_FILE}")


def _groups(table: pd.DataFrame | None, labels: LabelFigures | None) -> Mapping[str, str]:
    if table is None or labels is None or labels.id_column is None or labels.groups is None:
        return {}
    rows = table[table[labels.groups.column].notna()]
    return dict(zip(rows[labels.id_column].astype(str), rows[labels.groups.column].astype(str), strict=True))
