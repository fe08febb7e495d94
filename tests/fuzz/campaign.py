"""A fuzz run: cases, verdicts, what is kept of failures, and the table at the end."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.corpus import Unit, write_unit
from tests.fuzz.oracle import Outcome, Verdict

__all__ = ["Campaign", "Case", "Guard"]

_COLUMNS: Mapping[Outcome, str] = {
    "equal": "read equal",
    "refused": "refused",
    "died": "child died",
    "slow": "timeouts",
    "failure": "FAILURES",
}


@dataclass(frozen=True)
class Case:
    """One mutated input.

    Attributes:
        number: Its number, which makes it again.
        row: Row of the table it counts in.
        unit: The input.
    """

    number: int
    row: str
    unit: Unit


class Guard:
    """A folder in which nothing may change while inputs are read.

    Args:
        folder: New folder; gets a few files that a hostile input might want.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("secret.txt", "features.h5", "shards.arrow"):
            (folder / name).write_bytes(name.encode())
        self._before = self._look()

    @property
    def marker(self) -> Path:
        """The file that a pickle which runs code creates."""
        return self._folder / "created-by-a-pickle"

    def change(self) -> str | None:
        """What changed, if anything did."""
        after = self._look()
        changed = sorted(name for name in {*after, *self._before} if after.get(name) != self._before.get(name))
        return f"files outside the input were touched: {', '.join(changed)}" if changed else None

    def _look(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._folder.iterdir()}


@dataclass
class Campaign:
    """Runs cases and keeps count.

    Attributes:
        work: Folder of the inputs, emptied after each.
        kept: Folder of the inputs that failed.
        judge: The verdict on a written input.
        guard: What may not change.
        replay: The command that runs a case again, with `{number}` for its number.
    """

    work: Path
    kept: Path
    judge: Callable[[Path], Verdict]
    guard: Guard
    replay: str
    counts: dict[str, Counter[Outcome]] = field(default_factory=dict)
    details: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def run(self, case: Case) -> Verdict:
        """Write, judge and count one case."""
        root = self.work / str(case.number)
        root.mkdir(parents=True)
        path = write_unit(case.unit, root)
        started = time.monotonic()
        verdict = self.judge(path)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        beside = sorted(
            {str(item.relative_to(root)) for item in root.rglob("*") if item.is_file()} - set(case.unit.files)
        )
        change = f"it left {', '.join(beside)} beside the input" if beside else self.guard.change()
        if change is not None:
            verdict = Verdict("failure", change)
        shutil.rmtree(root)
        self.counts.setdefault(case.row, Counter())[verdict.outcome] += 1
        if verdict.outcome == "failure":
            folder = self.kept / f"case-{case.number}"
            write_unit(case.unit, folder / "input")
            (folder / "why.txt").write_text(f"{verdict.detail}\n")
            self.failures.append(
                f"{case.row}: {verdict.detail}\n  {folder}\n  {self.replay.format(number=case.number)}"
            )
        elif verdict.detail and verdict.outcome != "equal":
            detail = f"{_COLUMNS[verdict.outcome]}: {verdict.detail}"
            self.details[detail] += 1
            self.examples.setdefault(detail, f"{case.row} {case.number}")
        return verdict

    @property
    def num_inputs(self) -> int:
        """Cases so far."""
        return sum(sum(count.values()) for count in self.counts.values())

    def table(self) -> str:
        """Inputs and outcomes by row."""
        width = max(map(len, [*self.counts, "format"]))
        lines = [f"{'format':{width}}  inputs  " + "  ".join(_COLUMNS.values())]
        total: Counter[Outcome] = Counter()
        for row, count in sorted(self.counts.items()):
            total += count
            lines.append(_line(row, width, count))
        return "\n".join([*lines, _line("all", width, total)])

    def causes(self) -> Sequence[str]:
        """Why inputs were refused, and what processes died of, the most frequent first."""
        found = self.details.most_common()
        return [f"{number:7} {detail} (such as {self.examples[detail]})" for detail, number in found]


def _line(row: str, width: int, count: Counter[Outcome]) -> str:
    cells = "  ".join(f"{count[outcome]:{len(title)}}" for outcome, title in _COLUMNS.items())
    return f"{row:{width}}  {sum(count.values()):6}  {cells}"


def progress(done: int, wanted: int, started: float, num_failures: int) -> None:
    """One line on a terminal, written over the last."""
    if sys.stderr.isatty():
        rate = done / max(time.monotonic() - started, 1e-9)
        left = (wanted - done) / rate if rate else 0.0
        sys.stderr.write(f"\r{done}/{wanted} inputs, {rate:.0f}/s, {left:.0f} s left, {num_failures} failures \x1b[K")
        sys.stderr.flush()
