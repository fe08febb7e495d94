"""Data sets that need no download: `builtin:NAME` is a store that is built on first use.

Stores lie under `${ASMIL_DATA:data}/builtin/NAME-v1`. A store is built beside its place and renamed into it, so a
second builder that runs at the same time loses nothing but its own copy.
"""

from __future__ import annotations

import difflib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from asmil.data.digits import write_digits
from asmil.data.schema import DATASET_FILE
from asmil.data.simulated import write_cohort
from asmil.errors import ConfigError, DataError, EnvironmentProblem
from asmil.storage import disk_problems, ensure_directory

__all__ = ["BUILTIN", "resolve_store"]

PREFIX = "builtin:"
BUILTIN: Mapping[str, Callable[[Path], None]] = {"cohort": write_cohort, "digits": write_digits}
_VERSION = "v1"

_log = logging.getLogger(__name__)


def resolve_store(store: str) -> str:
    """The path of a store named in a configuration.

    Args:
        store: A path or address, returned unchanged, or `builtin:NAME`.

    Returns:
        Where the store is; a built-in one exists when this returns.

    Raises:
        ConfigError: There is no built-in data set of that name.
        DataError: Its place is taken by something that is not a store.
        EnvironmentProblem: The data directory cannot be written.
    """
    if not store.startswith(PREFIX):
        return store
    name = store.removeprefix(PREFIX)
    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=1)
        hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
        known = ", ".join(PREFIX + known for known in BUILTIN)
        raise ConfigError(f"data.store: no built-in data set {name!r}; {hint}built in are: {known}")
    place = Path(os.environ.get("ASMIL_DATA", "data")) / "builtin" / f"{name}-{_VERSION}"
    if not _is_store(place):
        _build(name, place)
    return str(place)


def _is_store(place: Path) -> bool:
    return (place / DATASET_FILE).is_file()


def _build(name: str, place: Path) -> None:
    if place.exists() and not _is_store(place):
        raise DataError(
            f"{place}: exists but is no store ({DATASET_FILE} is missing); delete it, and it is built again"
        )
    ensure_directory(place.parent, "the folder of built-in data sets")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as folder:
        built = Path(folder) / place.name
        BUILTIN[name](built)
        try:
            with disk_problems(place, "be put in place"):
                built.rename(place)
        except EnvironmentProblem:
            if not _is_store(place):
                raise
            _log.info("%s%s: built by another process meanwhile, at %s", PREFIX, name, place)
            return
    _log.info("%s%s: built at %s in %.1f s", PREFIX, name, place, time.monotonic() - start)
