"""Ray as the search sees it: which cluster, how many trials fit, and signals that end a search cleanly."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray

from asmil.errors import EnvironmentProblem
from tasks.spec import SearchConfig

__all__ = ["Slots", "connect", "plan_slots"]

LOCAL = "local"
OBJECT_STORE_BYTES = 256 << 20
CONNECT_TIMEOUT_S = 10
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Slots:
    """How trials share the cluster.

    Attributes:
        cpus: CPUs of one trial.
        gpus: GPUs of one trial.
        concurrent: Trials at once.
    """

    cpus: float
    gpus: float
    concurrent: int


@contextlib.contextmanager
def connect(address: str | None, *, num_cpus: int | None = None, temp_dir: str | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, for the body of the `with`.

    A local cluster is private: it demands a token that only this process and its children know. SIGTERM ends a search
    as Ctrl-C does, which batch systems and containers need.

    Args:
        address: Address of a running cluster; None takes `RAY_ADDRESS` or starts a local one.
        num_cpus: CPUs of a local cluster; None for all.
        temp_dir: Where a local cluster keeps its sockets and logs; socket paths must stay short.

    Raises:
        EnvironmentProblem: No cluster answers at the address, or the local one does not start.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    local: dict[str, Any] = {}
    if address == LOCAL:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        local = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        local |= {"_temp_dir": temp_dir} if temp_dir else {}
    else:
        _refuse_silence(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EnvironmentProblem(
            f"Ray at {address}: cannot be used ({error}); check --address and RAY_ADDRESS"
        ) from error
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


def plan_slots(search: SearchConfig) -> Slots:
    """What one trial holds and how many run at once in the connected cluster.

    Raises:
        EnvironmentProblem: Not even one trial fits.
    """
    total = ray.cluster_resources()
    cluster_gpus = float(total.get("GPU", 0))
    gpus = (1.0 if cluster_gpus else 0.0) if search.gpus_per_trial == "auto" else float(search.gpus_per_trial)
    fits = math.floor(float(total.get("CPU", 0)) / search.cpus_per_trial)
    if gpus:
        fits = min(fits, math.floor(cluster_gpus / gpus))
    if fits < 1:
        raise EnvironmentProblem(
            f"search: one trial needs {search.cpus_per_trial:g} CPUs and {gpus:g} GPUs, the cluster has "
            f"{total.get('CPU', 0):g} and {cluster_gpus:g}; lower search.cpus_per_trial or search.gpus_per_trial"
        )
    wanted = fits if search.max_concurrent == "auto" else min(fits, search.max_concurrent)
    return Slots(search.cpus_per_trial, gpus, wanted)


def _refuse_silence(address: str) -> None:
    """Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentProblem(
            f"Ray at {address}: nothing answers there ({error}); check --address and RAY_ADDRESS, and start the "
            "cluster first"
        ) from None


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)
