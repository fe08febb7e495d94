"""What a conversion remembers in `STORE/.pack`, so that another run can finish it: plan, finished shards, problems."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from asmil.config import StrictModel
from asmil.data.labels import first_of
from asmil.data.packing.messages import ShardResult, checked
from asmil.data.packing.plan import PlannedShard
from asmil.data.schema import (
    DATASET_FILE,
    INDEX_FILE,
    LABELS_FILE,
    LOCK_FILE,
    PACK_FOLDER,
    SHARD_FOLDER,
    SPLITS_FILE,
)
from asmil.errors import DataError
from asmil.storage import disk_problems, publish_json

__all__ = ["PackState"]

_PLAN = "plan.json"
_PROBLEMS = "problems.json"
_TABLES = (INDEX_FILE, LABELS_FILE, SPLITS_FILE)
_OURS = {PACK_FOLDER, SHARD_FOLDER, LOCK_FILE, DATASET_FILE, *_TABLES}


class _PlanFile(StrictModel):
    """What a run was started with.

    Attributes:
        options: Everything that decides the content of the store, by its name on the command line.
        sources: Fingerprint of every file that is read.
    """

    options: dict[str, Any]
    sources: dict[str, str]


class _ProblemsFile(StrictModel):
    """Files that gave a problem and may therefore be corrected between two runs."""

    paths: list[str]


class _ShardFile(StrictModel):
    """A finished shard, with the key of the plan it was made by and the conditions of that run."""

    key: str = Field(min_length=1)
    conditions: dict[str, Any]
    result: ShardResult


class PackState:
    """The folder `.pack` of a store in the making.

    Args:
        store: Directory of the store, held under lock.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._folder = store / PACK_FOLDER

    @property
    def is_complete(self) -> bool:
        """Whether there is a finished store; the folder may still be there after a kill in the last moment."""
        return (self.store / DATASET_FILE).exists()

    @property
    def is_begun(self) -> bool:
        """Whether a run has left a plan."""
        return (self._folder / _PLAN).exists()

    def require_ours(self) -> None:
        """Refuse a directory with anything that no conversion makes.

        Raises:
            DataError: There is other data.
        """
        names = [path.name for path in self.store.iterdir() if not (path.name in _OURS or _is_temporary(path))]
        shards = self.store / SHARD_FOLDER
        names += [f"{SHARD_FOLDER}/{path.name}" for path in shards.glob("*") if not _is_shard(path)]
        has_data = any(path.name not in (LOCK_FILE, PACK_FOLDER) for path in self.store.iterdir())
        if names or (has_data and not self.is_begun):
            found = f"found {first_of(names)}" if names else "there is no plan of a conversion"
            raise DataError(
                f"{self.store}: cannot resume here: {found}; "
                "give the directory of the unfinished conversion, or an empty one"
            )

    def check_same(self, options: Mapping[str, Any], sources: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Hold this run against the one that began; files that gave problems may have changed.

        Raises:
            DataError: Options or other files differ; the message lists the differences.
        """
        before = _load(_PlanFile, self._folder / _PLAN)
        if before is None:
            raise DataError(f"{self._folder / _PLAN}: cannot be read; delete {self.store} and convert again")
        differences = [
            f"{name} was {_shown(before.options.get(name))} and is {_shown(options.get(name))}"
            for name in sorted({*before.options, *options})
            if before.options.get(name) != options.get(name)
        ]
        problems = _load(_ProblemsFile, self._folder / _PROBLEMS)
        may_change = set() if problems is None else set(problems.paths)
        changed = [
            path for path in sorted({*before.sources, *sources}) if before.sources.get(path) != sources.get(path)
        ]
        differences += [
            f"{path} was {before.sources.get(path, 'absent')} and is {sources.get(path, 'absent')}"
            for path in changed
            if path not in may_change
        ]
        if differences:
            raise DataError(
                f"{self.store}: this is not the conversion that began here: {first_of(differences)}; give the same "
                "command and sources, or delete the directory and convert again"
            )
        if changed:
            say(f"corrected since: {first_of(changed)}")

    def begin(self, options: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Write what this run was started with, and remove the tables of one that was killed while it published."""
        with disk_problems(self._folder, "hold the state of the conversion"):
            for name in _TABLES:
                (self.store / name).unlink(missing_ok=True)
            self._folder.mkdir(exist_ok=True)
            publish_json(self._folder / _PLAN, {"options": dict(options), "sources": dict(sources)})
            (self.store / SHARD_FOLDER).mkdir(exist_ok=True)

    def add_problems(self, paths: Iterable[str]) -> None:
        """Remember which files gave problems, in this run or an earlier one."""
        before = _load(_ProblemsFile, self._folder / _PROBLEMS)
        known = [] if before is None else before.paths
        publish_json(self._folder / _PROBLEMS, {"paths": sorted({*known, *paths})})

    def finished(self, shards: Iterable[PlannedShard], conditions: Mapping[str, Any]) -> dict[str, ShardResult]:
        """The results of earlier runs that still hold; shard files and records of all others are removed.

        Args:
            shards: The plan of this run.
            conditions: Options that matter only to slides with problems; under others a shard with any is redone.
        """
        kept: dict[str, ShardResult] = {}
        for shard in shards:
            record = _load(_ShardFile, self._record(shard.name))
            if record is not None and record.key == shard.key and _still_holds(record, conditions):
                info, path = record.result.info, self.store / shard.name
                if info is None or (path.exists() and path.stat().st_size == info.bytes):
                    kept[shard.name] = record.result
        names = {Path(name).name for name, result in kept.items() if result.info is not None}
        self._remove_shards(except_for=names)
        for path in self._folder.glob("part-*.json"):
            if path not in {self._record(name) for name in kept}:
                path.unlink()
        return kept

    def finish_shard(self, shard: PlannedShard, result: ShardResult, conditions: Mapping[str, Any]) -> None:
        """Remember a finished shard."""
        record = _ShardFile(key=shard.key, conditions=dict(conditions), result=result)
        publish_json(self._record(shard.name), record.model_dump(mode="json"))

    def forget_shard(self, shard: PlannedShard) -> None:
        """Remove a finished shard whose source has changed."""
        self._record(shard.name).unlink(missing_ok=True)
        (self.store / shard.name).unlink(missing_ok=True)

    @property
    def num_finished(self) -> int:
        """Number of remembered shards that are files; one whose slides were all left out is none."""
        shards = self.store / SHARD_FOLDER
        return sum((shards / f"{path.stem}.arrow").exists() for path in self._folder.glob("part-*.json"))

    def tidy(self) -> None:
        """Remove the folder, and temporary files that a killed process left in the store."""
        self.remove_temporary()
        shutil.rmtree(self._folder, ignore_errors=True)

    def remove_temporary(self) -> None:
        """Remove temporary files; no process writes them any more."""
        for folder in (self.store, self.store / SHARD_FOLDER, self._folder):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything a conversion has made."""
        self._remove_shards(except_for=set())
        self.tidy()
        for name in _TABLES:
            (self.store / name).unlink(missing_ok=True)
        shards = self.store / SHARD_FOLDER
        if shards.is_dir():
            shards.rmdir()

    def _remove_shards(self, except_for: set[str]) -> None:
        for path in (self.store / SHARD_FOLDER).glob("*"):
            if _is_shard(path) and path.name not in except_for:
                path.unlink()

    def _record(self, shard_name: str) -> Path:
        return self._folder / f"{Path(shard_name).stem}.json"


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)


def _still_holds(record: _ShardFile, conditions: Mapping[str, Any]) -> bool:
    return not (record.result.problems or record.result.clipped) or record.conditions == conditions


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _is_shard(path: Path) -> bool:
    return _is_temporary(path) or (path.name.startswith("part-") and path.suffix == ".arrow")


def _load(model: type[Any], path: Path) -> Any:
    """A record of an earlier run; None if there is none or it cannot be read."""
    try:
        return checked(model, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
