"""Mutated files of a store: the seed, the mutations, the child that reads it, and the verdict.

The child reads a store as training does: all bags, labels, splits, and what `verify` says. A store is mutated in two
ways. Plainly, and then what is read must be the original: everything is checked against `dataset.json`, the only file
that is trusted. Or sealed again: hashes and sizes in `dataset.json` are made to fit the mutated file, so that the Arrow
parsers see it; the content may then be anything, but nothing may crash, hang or raise what is no `AsmilError`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
import xxhash

from asmil.data.schema import DATASET_FILE, INDEX_FILE, LABELS_FILE, SPLITS_FILE
from asmil.data.store import BagStore
from asmil.data.verify import damages
from asmil.data.writer import BagWriter
from asmil.errors import AsmilError
from tests.fuzz.child import Child, ChildError, serve
from tests.fuzz.corpus import Unit, read_unit
from tests.fuzz.mutations import mutate_bytes, mutate_text
from tests.fuzz.oracle import Verdict

__all__ = ["StoreOracle", "mutated_store", "sealed", "store_seed"]

_DECLARED = ("format", "num_features", "dtype", "coord_dtype", "has_instance_labels", "shards", "index_sha256")


def store_seed(folder: Path) -> Unit:
    """A store with everything a store can have, in two shards."""
    generator = np.random.default_rng(0)
    with BagWriter(folder / "store", num_features=3, target_shard_bytes=64) as writer:
        for bag, size in enumerate((3, 2, 4)):
            writer.add(
                f"S{bag}",
                generator.standard_normal((size, 3)).astype("f4"),
                coords_N2=generator.integers(0, 9, (size, 2)),
                instance_labels_N=np.arange(size) % 2,
            )
        writer.set_labels(pd.DataFrame({"slide_id": ["S0", "S1", "S2"], "time": [1.5, 2.0, 3.25], "event": [0, 1, 1]}))
        writer.set_splits(json.dumps({"train": ["S0", "S1"], "test": ["S2"]}).encode())
    return read_unit("store", folder, folder / "store")


def mutated_store(unit: Unit, seed: int, number: int) -> tuple[Unit, bool]:
    """The store of one case, and whether it was sealed again."""
    rng = Random(f"store:{seed}:{number}")
    files = dict(unit.files)
    name, is_sealed = rng.choice(sorted(files)), rng.random() < 0.3
    content = files[name]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        is_text = name.endswith(".json") and rng.random() < 0.6
        content = mutate_text(rng, content) if is_text else mutate_bytes(rng, content)
    files[name] = content
    if is_sealed and not name.endswith(DATASET_FILE):
        files = sealed(files, unit.target)
    return Unit(unit.name, unit.target, files), is_sealed


def sealed(files: dict[str, bytes], root: str) -> dict[str, bytes]:
    """The files of a store with `dataset.json` made to fit the others."""
    tree = json.loads(files[f"{root}/{DATASET_FILE}"])
    for key, name in (("index_sha256", INDEX_FILE), ("labels_sha256", LABELS_FILE), ("splits_sha256", SPLITS_FILE)):
        tree[key] = hashlib.sha256(files[f"{root}/{name}"]).hexdigest()
    for shard in tree["shards"]:
        content = files[f"{root}/{shard['name']}"]
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return files | {f"{root}/{DATASET_FILE}": json.dumps(tree).encode()}


class StoreOracle:
    """Judges mutated stores by what the child reads.

    Args:
        child: Runs this module.
        original: The store as it was written.
        deadline_s: Seconds for one store.
    """

    def __init__(self, child: Child, original: Path, deadline_s: float) -> None:
        self._child = child
        self._deadline_s = deadline_s
        self._original = child.ask({"path": str(original)}, 120.0)
        assert "bags" in self._original, self._original
        assert self._original["damages"] == [], self._original

    def judge(self, path: Path, *, is_sealed: bool) -> Verdict:
        """The verdict on one store."""
        try:
            found = self._child.ask({"path": str(path)}, self._deadline_s)
        except ChildError as error:
            return Verdict("failure", f"the reader of the store {error}")
        if "error" in found:
            return Verdict("failure", f"the reader of the store raised {found['error']}")
        if "refused" in found:
            return Verdict("refused", f"store: {found['refused']}")
        if is_sealed:
            return Verdict("equal")
        return self._compared(found)

    def _compared(self, found: dict[str, Any]) -> Verdict:
        original = self._original
        same_declared = all(found["declared"][key] == original["declared"][key] for key in _DECLARED)
        for name, bag in original["bags"].items():
            read = found["bags"].get(name)
            if read is None:
                return Verdict("failure", f"bag {name} is not in the store")
            if "refused" not in read and read["bytes"] != bag["bytes"]:
                return Verdict("failure", f"bag {name} has other bytes than were written")
            if "refused" not in read and same_declared and read != bag:
                return Verdict("failure", f"bag {name} has other shapes or dtypes than were written")
        for key in ("labels", "splits"):
            is_gone = found[key] is None and found["declared"][f"{key}_sha256"] is None
            if not is_gone and found[key] != original[key] and "refused" not in (found[key] or {}):
                return Verdict("failure", f"{key} are not those that were written")
        refused = any(
            "refused" in part for part in (*found["bags"].values(), found["labels"] or {}, found["splits"] or {})
        )
        return Verdict("refused", "store: bag, labels or splits") if refused else Verdict("equal")


def _read(question: dict[str, Any]) -> dict[str, Any]:
    try:
        store = BagStore.open(question["path"])
    except AsmilError as error:
        return {"refused": type(error).__name__}
    declared = store.info.model_dump(mode="json")
    return {
        "declared": {key: declared[key] for key in (*_DECLARED, "labels_sha256", "splits_sha256")},
        "bags": {slide_id: _guarded(lambda slide_id=slide_id: _bag(store, slide_id)) for slide_id in store.slide_ids},
        "labels": _guarded(lambda: _labels(store)),
        "splits": _guarded(lambda: _splits(store)),
        "damages": _guarded(lambda: list(damages(store))),
    }


def _guarded(read: Any) -> Any:
    try:
        return read()
    except AsmilError as error:
        return {"refused": type(error).__name__}


def _bag(store: BagStore, slide_id: str) -> dict[str, Any]:
    bag = store.read(slide_id)
    parts = {"features": bag.features_ND, "coords": bag.coords_N2, "instance_labels": bag.instance_labels_N}
    arrays = {name: part.contiguous() for name, part in parts.items() if part is not None}
    content = b"".join(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in arrays.values())
    shapes = {name: [str(part.dtype), list(part.shape)] for name, part in arrays.items()}
    return {"bytes": xxhash.xxh3_64_hexdigest(content), "shapes": shapes}


def _labels(store: BagStore) -> dict[str, Any] | None:
    labels = store.labels()
    return None if labels is None else {"table": labels.to_csv(index=False)}


def _splits(store: BagStore) -> dict[str, Any] | None:
    splits = store.given_splits()
    return None if splits is None else {"content": splits.hex()}


if __name__ == "__main__":
    serve(_read)
