"""Whether what a reader made of a mutated unit is right: equal to a plain reading, refused, or a failure."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asmil.data.packing.messages import MAX_NAME, Opened, Problem
from asmil.data.packing.process import ReaderDied
from asmil.data.packing.shard_job import sent_options
from asmil.data.sources import ReadOptions
from tests.fuzz.child import Child, ChildError

__all__ = ["Asked", "Outcome", "ReaderOracle", "Verdict"]

GRACE_S = 5.0  # for ending a process that took too long
_PLAIN_DEADLINE_S = 60.0
_RETRY_FACTOR = 4
_DEFECT = re.compile(r"its reader failed \((NameError|UnboundLocalError|AttributeError|AssertionError):")
_READ = sent_options(ReadOptions())

Outcome = Literal["equal", "refused", "died", "slow", "failure"]


@dataclass(frozen=True)
class Verdict:
    """What became of one input.

    Attributes:
        outcome: `equal` data was read; the unit was `refused`; the process `died` or was `slow`, which the parent
            survived; or it is a `failure`. A process that was ended for its time is `slow` only if the library hangs
            in that file without the reader too, or if it answered when it was given more time; else it is a failure,
            since no input is large.
        detail: Why, in words that are the same for the same cause.
    """

    outcome: Outcome
    detail: str = ""


class Asked(Protocol):
    """What is asked: a `packing.process.Worker`, or something that stands for it."""

    @property
    def pid(self) -> int | None:
        """The process; None if the next request starts one."""
        ...

    def request(self, message: dict[str, Any], deadline_s: float | None = None) -> dict[str, Any]:
        """The reply."""
        ...


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Array(_Strict):
    dtype: str
    shape: list[int]
    xxh3: str = Field(pattern="^[0-9a-f]{16}$")


class _Damaged(_Strict):
    problem: Problem


class _Digested(_Strict):
    format: str
    reason: str
    slides: dict[str, dict[Literal["features", "coords", "instance_labels"], _Array] | _Damaged]
    no_tissue: list[str]


class _Refused(_Strict):
    error: Literal["problem"]
    problem: Problem


class _Failed(_Strict):
    error: Literal["memory", "environment", "integrity"]
    message: str


class _SchemaError(Exception):
    """A reply that is none."""


class ReaderOracle:
    """Asks the persistent worker for every input and judges its replies.

    Args:
        worker: The worker.
        plain: The child that reads plainly.
        deadline_s: Seconds that a request may take.
        warm_up: A sound unit, read before the time of the first request to a fresh process is taken, since it imports
            torch and SciPy; each of them once.
    """

    def __init__(self, worker: Asked, plain: Child, deadline_s: float, warm_up: tuple[Path, ...] = ()) -> None:
        self._worker = worker
        self._plain = plain
        self._deadline_s = deadline_s
        self._warm_up = warm_up

    def judge(self, path: Path) -> Verdict:
        """The verdict on one unit; never raises for what the unit or the worker does."""
        try:
            verdict = self._judge(path, self._deadline_s)
            if verdict.outcome != "slow":
                return verdict
            if self._hangs_plainly(path):
                return Verdict("slow", "the HDF5 library hangs in this file without the reader as well")
            again = self._judge(path, self._deadline_s * _RETRY_FACTOR)
        except Exception:
            return Verdict("failure", "the parent raised: " + traceback.format_exc())
        if again.outcome == "slow":
            return Verdict("failure", f"hangs: no reply within {self._deadline_s * _RETRY_FACTOR:g} s")
        return again if again.outcome == "failure" else verdict

    def _judge(self, path: Path, deadline_s: float) -> Verdict:
        self._warm()
        started = time.monotonic()
        try:
            reply = self._worker.request({"task": "digest", "path": str(path), "read": _READ}, deadline_s)
            late_s = time.monotonic() - started - deadline_s
            if late_s > GRACE_S:
                return Verdict("failure", f"the parent waited {late_s:.1f} s beyond the deadline")
            digested = _parsed(_Digested, reply)
            if digested is None:
                return _refusal(reply)
            opened = self._worker.request({"task": "open", "path": str(path), "read": _READ}, deadline_s)
        except ReaderDied as death:
            if time.monotonic() - started > 2 * deadline_s + GRACE_S:
                return Verdict("failure", "the parent waited beyond the deadline")
            return Verdict("slow" if death.is_timeout else "died", death.reason)
        except _SchemaError as error:
            return Verdict("failure", f"the reply breaks its schema: {error}")
        return self._compared(path, digested, opened)

    def _hangs_plainly(self, path: Path) -> bool:
        try:
            self._plain.ask({"format": "any", "path": str(path)}, self._deadline_s)
        except ChildError as error:
            return error.is_timeout
        return False

    def _warm(self) -> None:
        if self._worker.pid is None:
            for path in self._warm_up:
                self._worker.request({"task": "digest", "path": str(path), "read": _READ}, 120.0)

    def _compared(self, path: Path, digested: _Digested, reply: dict[str, Any]) -> Verdict:
        try:
            opened = Opened.model_validate(reply)
        except ValidationError as error:
            if "error" in reply and _text_of(reply).startswith("problem: its labels or facts hold NaN"):
                return _refusal(reply)
            return Verdict("failure", f"the reply to `open` breaks its schema: {str(error)[:500]} {str(reply)[:200]}")
        if {header.slide_id for header in opened.slides} != {name[:MAX_NAME] for name in digested.slides}:
            return Verdict("failure", "`open` and `digest` name different slides")
        read = {name: found for name, found in digested.slides.items() if not isinstance(found, _Damaged)}
        if not read and digested.slides:
            [first, *_] = digested.slides.values()
            assert isinstance(first, _Damaged)
            return _problem(first.problem)
        try:
            answer = self._plain.ask({"format": digested.format, "path": str(path)}, _PLAIN_DEADLINE_S)
        except ChildError as error:
            return Verdict("failure", f"was read as {digested.format}, but the plain reading {error}")
        if "error" in answer:
            return Verdict("failure", f"was read as {digested.format}, but the plain reading fails: {answer['error']}")
        labels = {name: opened.labels.get(name[:MAX_NAME], {}).get("label") for name in digested.slides}
        different = _difference(digested, read, labels, answer["slides"])
        return Verdict("equal") if different is None else Verdict("failure", f"{digested.format}: {different}")


def _parsed(model: type[_Digested], reply: dict[str, Any]) -> _Digested | None:
    if "error" in reply:
        return None
    try:
        return model.model_validate(reply)
    except ValidationError as error:
        raise _SchemaError(str(error)[:500]) from None


def _refusal(reply: dict[str, Any]) -> Verdict:
    for model in (_Refused, _Failed):
        try:
            found = model.model_validate(reply)
        except ValidationError:
            continue
        return _problem(found.problem) if isinstance(found, _Refused) else Verdict("refused", found.error)
    raise _SchemaError(str(reply)[:500])


def _text_of(reply: Mapping[str, Any]) -> str:
    try:
        return f"problem: {_Refused.model_validate(reply).problem.reason}"
    except ValidationError:
        return ""


def _problem(problem: Problem) -> Verdict:
    if "defect of detection" in problem.reason or _DEFECT.match(problem.reason):
        return Verdict("failure", problem.reason)
    if problem.reason.startswith("its reader failed"):
        return Verdict("refused", "no clear message: " + re.sub(r"/\S+", "…", problem.reason)[:160])
    return Verdict("refused", problem.kind)


def _difference(
    digested: _Digested,
    read: Mapping[str, Mapping[str, _Array]],
    labels: Mapping[str, Any],
    slides: list[tuple[str | None, dict[str, Any]]],
) -> str | None:
    """The first way in which what was read differs from the plain reading."""
    known = set(digested.slides) | set(digested.no_tissue)
    plain = {name if name is not None else next(iter(known), ""): found for name, found in slides}
    if len(plain) != len(slides):
        return "two slides of one name in the plain reading"
    for name, arrays in read.items():
        found = plain.get(name, {"error": "it is not there"})
        if "error" in found:
            return f"slide {name!r} was read, the plain reading says {found['error']}"
        ours = {key: array.model_dump() for key, array in arrays.items()}
        if ours != found["arrays"]:
            return f"slide {name!r} is {ours}, plainly read {found['arrays']}"
        if not _same_label(labels.get(name), found["label"]):
            return f"slide {name!r} has label {labels.get(name)!r}, plainly read {found['label']!r}"
    for name, found in plain.items():
        rows = found.get("arrays", {"features": {"shape": [0]}})["features"]["shape"]
        if (name not in known or name in digested.no_tissue) and 0 not in rows:
            return f"slide {name!r} is there in the plain reading and was neither read nor refused"
    return None


def _same_label(ours: Any, plain: Any) -> bool:
    if isinstance(plain, str) and isinstance(ours, int):
        return bool(re.fullmatch(r"\s*[+-]?\d+\s*", plain)) and int(plain) == ours
    return bool(ours == plain)
