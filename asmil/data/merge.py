"""Join stores of the same kind of features into one: `python -m asmil.data.merge STORE... --out STORE`.

Every bag is checked against its checksum while it is copied, and keeps its bytes. What the stores say about their
features must agree. The bags of the new store lie in the order of the stores given, and within each in its own order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asmil import __version__
from asmil.data.inspection.duplicates import same_features
from asmil.data.labels import first_of
from asmil.data.merging import LabelPart, joined_labels
from asmil.data.schema import DatasetFacts, DatasetInfo
from asmil.data.store import BagStore
from asmil.data.writer import BagWriter
from asmil.errors import DataError, run_command

__all__ = ["main", "merge"]

_LAYOUT_FIELDS = ("num_features", "dtype", "coord_dtype", "has_instance_labels")
_FACT_FIELDS = ("encoder", "magnification", "mpp", "tile_size", "coord_unit", "coord_origin")


class _Part(NamedTuple):
    uri: str
    store: BagStore

    def stated(self, field: str) -> Any:
        """What the store says about its features."""
        return getattr(self.store.info, field)


def merge(
    uris: Sequence[str],
    out: Path,
    *,
    assume_same: bool = False,
    target_shard_bytes: int = 512 << 20,
    say: Callable[[str], None] = print,
) -> DatasetInfo:
    """Join stores.

    Args:
        uris: The stores, at least one.
        out: Directory of the new store; must be empty or absent.
        assume_same: What one store states about its features and another leaves open is taken to hold for both.
        target_shard_bytes: As for `BagWriter`.
        say: Receives every finding, one line each.

    Returns:
        The facts of the new store.

    Raises:
        DataError: No store is given, stores contradict each other, or they have slide ids in common.
        IntegrityError: A bag is damaged; nothing is left of the new store.
        EnvironmentProblem: The new store cannot be written.
    """
    if not uris:
        raise DataError(f"{out}: there are no stores to join; name at least one")
    parts = [_Part(uri, BagStore.open(uri)) for uri in uris]
    _refuse_repeated_ids(parts)
    facts = _joined_facts(parts, assume_same, say)
    for group in same_features([part.store for part in parts]):
        say(f"warning: the same features under {len(group)} ids: {first_of(group)}")
    labels = joined_labels([LabelPart(uri, store.labels(), store.slide_ids) for uri, store in parts], say)
    splits = {part.uri: content for part in parts if (content := part.store.given_splits()) is not None}
    if splits and len(parts) > 1:
        say(f"imported splits are dropped, they do not cover the new store: {first_of(list(splits))}")
    first = parts[0].store.info
    with BagWriter(
        out, num_features=first.num_features, dtype=first.dtype, target_shard_bytes=target_shard_bytes, facts=facts
    ) as writer:
        for part in parts:
            _copy(part.store, writer)
        if labels is not None:
            writer.set_labels(labels)
        if splits and len(parts) == 1:
            writer.set_splits(splits[parts[0].uri])
    info = BagStore.open(str(out)).info
    say(
        f"wrote {out}: {info.num_bags} bags, {info.num_instances} instances x {info.num_features} {info.dtype}, "
        f"dataset {info.dataset_id[:16]}{', simulated' if info.simulated else ''}"
    )
    return info


def _refuse_repeated_ids(parts: Sequence[_Part]) -> None:
    owners: dict[str, int] = {}
    repeated: dict[str, tuple[str, str]] = {}
    for number, part in enumerate(parts):
        for slide_id in part.store.slide_ids:
            owner = owners.setdefault(slide_id, number)
            if owner != number:
                repeated.setdefault(slide_id, (parts[owner].uri, part.uri))
    if repeated:
        first, second = next(iter(repeated.values()))
        raise DataError(
            f"{second}: {len(repeated)} slide ids are in two stores, the first of them in {first} too: "
            f"{first_of(list(repeated))}; leave one of the stores out, or convert it with other ids"
        )


def _joined_facts(parts: Sequence[_Part], assume_same: bool, say: Callable[[str], None]) -> DatasetFacts:
    first = parts[0]
    for field in _LAYOUT_FIELDS:
        for part in parts:
            if part.stated(field) != first.stated(field):
                raise _contradiction(field, first, part)
    extra = _common([part.store.info.facts for part in parts])
    differing = sorted({name for part in parts for name in part.store.info.facts} - extra.keys())
    if differing:
        say(f"facts that differ between the stores are kept only in the provenance: {first_of(differing)}")
    simulated = [part.uri for part in parts if part.store.info.simulated]
    if 0 < len(simulated) < len(parts):
        say(f"warning: the new store counts as simulated because some stores are: {first_of(simulated)}")
    return DatasetFacts(
        **{field: _agreed(parts, field, assume_same) for field in _FACT_FIELDS},
        provenance=_provenance(parts),
        simulated=bool(simulated),
        facts=extra,
    )


def _agreed(parts: Sequence[_Part], field: str, assume_same: bool) -> Any:
    """What all stores say; what only some of them say only if that is allowed to speak for the others."""
    known = [part for part in parts if part.stated(field) is not None]
    if not known:
        return None
    for part in known:
        if part.stated(field) != known[0].stated(field):
            raise _contradiction(field, known[0], part)
    unknown = [part.uri for part in parts if part.stated(field) is None]
    if unknown and not assume_same:
        raise DataError(
            f"{unknown[0]}: {field} is unknown, but {known[0].uri} says {known[0].stated(field)!r}; if it holds for "
            "both, join them with --assume-same"
        )
    return known[0].stated(field)


def _contradiction(field: str, first: _Part, second: _Part) -> DataError:
    return DataError(
        f"{second.uri}: {field} is {second.stated(field)!r}, but {first.uri} says {first.stated(field)!r}; a store "
        "holds features of one kind: keep them apart, or convert the sources again alike"
    )


def _common(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all have, with the same value."""
    return {
        name: value
        for name, value in facts[0].items()
        if all(name in other and other[name] == value for other in facts)
    }


def _provenance(parts: Sequence[_Part]) -> dict[str, Any]:
    return {
        "format": "merged stores",
        "parts": [
            {
                "store": uri,
                "dataset_id": store.info.dataset_id,
                "num_bags": store.info.num_bags,
                "simulated": store.info.simulated,
                "facts": store.info.facts,
                "provenance": store.info.provenance,
            }
            for uri, store in parts
        ],
        "converter": f"asmil {__version__}",
    }


def _copy(store: BagStore, writer: BagWriter) -> None:
    for slide_id in store.slide_ids:
        bag = store.read(slide_id)
        features_ND = bag.features_ND
        if features_ND.dtype == torch.bfloat16:  # numpy has no such type; the writer takes bit patterns as they are
            stored_ND = features_ND.view(torch.int16).numpy().view(np.uint16)
        else:
            stored_ND = features_ND.numpy()
        writer.add(
            slide_id,
            stored_ND,
            coords_N2=None if bag.coords_N2 is None else bag.coords_N2.numpy(),
            instance_labels_N=None if bag.instance_labels_N is None else bag.instance_labels_N.numpy(),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program name; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m asmil.data.merge", description=__doc__)
    parser.add_argument("stores", nargs="+", metavar="STORE", help="directory or address of a store")
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="directory of the new store")
    parser.add_argument(
        "--assume-same",
        action="store_true",
        help="what one store states about its features (encoder, resolution, coordinates) and another leaves open "
        "holds for both",
    )
    given = parser.parse_args(arguments)
    merge(given.stores, given.out, assume_same=given.assume_same)


if __name__ == "__main__":
    run_command(main)
