"""Mutated files against all readers, through one persistent limited process: `python -m tests.fuzz`.

Every input is one fixture of a foreign format, or a store, with a few mutations. What a reader makes of it must equal a
plain reading with h5py, NumPy, torch or SciPy alone, or be refused; of a store, it must be what was written. The exit
status is 1 if the parent raised, a process did not end in time, data was wrong or files outside the input were touched.
That the reading process dies of an input is survived and counted: it is there to die.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path

from asmil.data.packing.process import ReaderLimits, Worker
from tests.fuzz.campaign import Campaign, Case, Guard, progress
from tests.fuzz.child import Child
from tests.fuzz.corpus import Unit, fixtures, mutated
from tests.fuzz.oracle import ReaderOracle, Verdict
from tests.fuzz.stores import StoreOracle, mutated_store, store_seed
from tests.fuzz.structure import CANARY_VARIABLE

STORE = "store"
MEMORY_BYTES = 1 << 30
_WARM_UP = ("tensor-pt", "cell-mat", "clam-h5", "dsmil-csv")


class Readers:
    """The cases of the foreign formats.

    Args:
        folder: New folder for the fixtures.
        seed: Seed of the run.
        only: A format; None takes all.
    """

    def __init__(self, folder: Path, seed: int, only: str | None = None) -> None:
        folder.mkdir()
        self._all = fixtures(folder)
        self._units = [unit for unit in self._all if only is None or only in (unit.name, unit.format)]
        self._seed = seed
        self.warm_up = tuple(folder / _root(self._all, name) / _named(self._all, name).target for name in _WARM_UP)

    def __len__(self) -> int:
        return len(self._units)

    def case(self, number: int) -> Case:
        """One case; the fixtures take turns."""
        unit = self._units[number % len(self._units)]
        return Case(number, unit.format, mutated(unit, self._all, self._seed, number))


def _named(units: Sequence[Unit], name: str) -> Unit:
    return next(unit for unit in units if unit.name == name)


def _root(units: Sequence[Unit], name: str) -> str:
    return str([unit.name for unit in units].index(name))


def _numbers(inputs: int, seconds: float | None, only: int | None) -> Iterator[int]:
    if only is not None:
        yield only
        return
    started = time.monotonic()
    for number in count() if not inputs else range(inputs):
        if seconds is not None and time.monotonic() - started > seconds:
            return
        yield number


def _run(campaign: Campaign, cases: Iterator[Case], wanted: int) -> None:
    started, before = time.monotonic(), campaign.num_inputs
    for case in cases:
        campaign.run(case)
        done = campaign.num_inputs - before
        if done % 50 == 0 or done == wanted:
            progress(done, wanted, started, len(campaign.failures))


def _store_verdict(oracle: StoreOracle, sealed: set[int], path: Path) -> Verdict:
    return oracle.judge(path, is_sealed=int(path.parent.name) in sealed)


def _fuzz(stack: ExitStack, campaign: Campaign, options: argparse.Namespace, scratch: Path) -> None:
    if options.only != STORE:
        _fuzz_readers(stack, campaign, options, scratch)
    if options.only in (None, STORE) and (options.case is None or options.only):
        campaign.replay = f"python -m tests.fuzz --seed {options.seed} --only {STORE} --case {{number}}"
        _fuzz_stores(stack, campaign, options, scratch)


def _fuzz_readers(stack: ExitStack, campaign: Campaign, options: argparse.Namespace, scratch: Path) -> None:
    readers = Readers(scratch / "fixtures", options.seed, options.only)
    worker = stack.enter_context(Worker(ReaderLimits(MEMORY_BYTES, options.deadline)))
    plain = stack.enter_context(Child("tests.fuzz.plain"))
    campaign.judge = ReaderOracle(worker, plain, options.deadline, readers.warm_up).judge
    numbers = _numbers(options.inputs, options.seconds, options.case)
    _run(campaign, (readers.case(number) for number in numbers), options.inputs)


def _fuzz_stores(stack: ExitStack, campaign: Campaign, options: argparse.Namespace, scratch: Path) -> None:
    original = scratch / "original"
    original.mkdir()
    seed, sealed = store_seed(original), set[int]()
    oracle = StoreOracle(stack.enter_context(Child("tests.fuzz.stores")), original / "store", options.deadline)
    campaign.judge = lambda path: _store_verdict(oracle, sealed, path)

    def cases() -> Iterator[Case]:
        for number in _numbers(options.stores, options.seconds, options.case):
            unit, is_sealed = mutated_store(seed, options.seed, number)
            sealed.update({number} if is_sealed else ())
            yield Case(number, f"{STORE}, sealed again" if is_sealed else STORE, unit)

    _run(campaign, cases(), options.stores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="mutated units (default: %(default)s)")
    parser.add_argument("--stores", type=int, default=2_000, help="mutated stores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="stop each half after this time")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds for one input (default: %(default)s)")
    parser.add_argument("--only", help=f"one format, one fixture, or {STORE}")
    parser.add_argument("--case", type=int, help="run one case again; with the --only and --seed it was found with")
    parser.add_argument("--keep", type=Path, help="folder for failing inputs (default: a new one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: Without the program name; None takes those of the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    kept = options.keep or Path(tempfile.mkdtemp(prefix="asmil-fuzz-kept-"))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asmil-fuzz-")))
        guard = Guard(scratch / "guarded")
        os.environ[CANARY_VARIABLE] = str(guard.marker)
        words = f"--seed {options.seed}" + (f" --only {options.only!r}" if options.only else "")
        campaign = Campaign(
            scratch / "inputs",
            kept,
            lambda _: Verdict("equal"),
            guard,
            f"python -m tests.fuzz {words} --case {{number}}",
        )
        try:
            _fuzz(stack, campaign, options, scratch)
        except KeyboardInterrupt:
            print("interrupted; what was found so far:", file=sys.stderr)
    elapsed_s = time.monotonic() - started
    _report(campaign, elapsed_s)
    if not campaign.failures and options.keep is None:
        kept.rmdir()
    return 1 if campaign.failures else 0


def _report(campaign: Campaign, elapsed_s: float) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    print(campaign.table())
    print("\ncauses, by number of inputs:")
    print("\n".join(islice(campaign.causes(), 40)))
    print(f"\n{campaign.num_inputs} inputs in {elapsed_s:.0f} s, the slowest took {campaign.slowest_s:.1f} s")
    for failure in campaign.failures:
        print(f"\nFAILURE {failure}")
    print(f"{len(campaign.failures)} failures")


if __name__ == "__main__":
    sys.exit(main())
