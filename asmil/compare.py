"""Compare finished runs on the same bags: `python -m asmil.compare RUN RUN ...`; the first run is the reference.

Prints, for every metric, the difference (reference minus the other) with its 95 % interval and p-values, over patients,
over folds and over seeds. These answer three questions: would other patients change it, would other splits, would other
training runs. A difference that matters survives the questions it is claimed for.

K.6 of the ASMIL paper, with against without anchor:

  python -m asmil.run tasks/digits.yaml --folds all --seeds 10 --test --out runs/with
  python -m asmil.run tasks/digits.yaml --folds all --seeds 10 --test --out runs/without --set model.anchor=null
  python -m asmil.compare runs/with runs/without
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asmil.compare_figures import Paired, compare_runs, null_spread, spreads_over_seeds
from asmil.compare_runs import FinishedRun, read_run, trainings_of_all
from asmil.engine.jobs import Job
from asmil.errors import ConfigError, run_command
from asmil.evaluation import metrics_tree
from asmil.metrics.differences import Difference, with_holm
from asmil.metrics.trainings import SeedSpread
from asmil.metrics.values import Metric
from asmil.report.tables import Cell, format_number, print_table
from asmil.storage import publish_json

__all__ = ["main"]

MIN_RESAMPLES = 200
UNITS = ("patients", "folds", "seeds")
HEADER = ("metric", "first", "second", "difference [95 %]", "p", "p (Holm)", "p (exact)", "over", "left out", "method")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program name; those of the process without it.
    """
    options = _parser().parse_args(arguments)
    names = _names(options)
    runs = [read_run(path, name, options.part) for path, name in zip(options.runs, names, strict=True)]
    jobs, left_out = trainings_of_all(runs, common=options.common)
    reference, others = runs[0], runs[1:]
    pairs = {run.name: compare_runs(reference, run, jobs, options.part, resamples=options.resamples) for run in others}
    pairs = _corrected(pairs)
    spreads = {run.name: spreads_over_seeds(run, jobs) for run in runs}
    by_chance = null_spread(reference, jobs)
    _print_heading(runs, jobs, left_out, options.part)
    for name, pair in pairs.items():
        _print_pair(reference.name, name, pair)
    _print_spreads(spreads, by_chance)
    if options.json is not None:
        tree = {
            "part": options.part,
            "reference": reference.name,
            "simulated": any(run.simulated for run in runs),
            "runs": {run.name: _run_tree(run, jobs) for run in runs},
            "trainings": [job.name for job in jobs],
            "left_out": left_out,
            "resamples": options.resamples,
            "comparisons": {name: asdict(pair) for name, pair in pairs.items()},
            "seed_spread": {
                name: {metric: asdict(spread) for metric, spread in found.items()} for name, found in spreads.items()
            },
            "null_c_spread": by_chance,
        }
        publish_json(options.json, tree)
        print(f"{options.json} written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asmil.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or SEARCH/models/VARIANT")
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="which part (%(default)s)")
    parser.add_argument("--names", metavar="A,B,...", help="what to call the runs (default: their directories)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (%(default)s)")
    parser.add_argument("--common", action="store_true", help="compare the folds and seeds that all runs have")
    return parser


def _names(options: argparse.Namespace) -> list[str]:
    """One name per run, all different."""
    if len(options.runs) < 2:
        raise ConfigError(f"RUN: got {len(options.runs)}; give two run directories or more, the reference first")
    if options.resamples < MIN_RESAMPLES:
        raise ConfigError(
            f"--resamples: got {options.resamples}; {MIN_RESAMPLES} or more are needed to tell a 2.5 % quantile"
        )
    if options.names is not None:
        names = [name.strip() for name in options.names.split(",")]
        if len(names) != len(options.runs) or len(set(names)) < len(names) or not all(names):
            raise ConfigError(
                f"--names: got {options.names!r}; give {len(options.runs)} different names with commas between"
            )
        return names
    short, full = [path.name for path in options.runs], [str(path) for path in options.runs]
    names = short if len(set(short)) == len(short) and all(short) else full
    if len(set(names)) < len(names):
        raise ConfigError(f"RUN: {', '.join(full)}: the same run twice; a run is compared with another one")
    return names


def _corrected(pairs: Mapping[str, Paired]) -> dict[str, Paired]:
    """Holm's correction over the runs compared, for each metric and unit by itself."""
    found: dict[str, dict[str, dict[str, Difference]]] = {name: {unit: {} for unit in UNITS} for name in pairs}
    for unit in UNITS:
        listed = {name: getattr(pair, unit) for name, pair in pairs.items()}
        for metric in dict.fromkeys(metric for differences in listed.values() for metric in differences):
            family = {name: differences[metric] for name, differences in listed.items() if metric in differences}
            for name, difference in with_holm(family).items():
                found[name][unit][metric] = difference
    return {name: Paired(**units) for name, units in found.items()}


def _print_heading(runs: Sequence[FinishedRun], jobs: Sequence[Job], left_out: Sequence[str], part: str) -> None:
    if any(run.simulated for run in runs):
        print("SIMULATED DATA: the bags and labels of this store are made up; no figure below is about patients.")
    if left_out:
        print("NOT ALL TRAININGS: compared are those that every run has. Left out:")
        for line in left_out:
            print(f"  {line}")
    folds, seeds = len({(job.repeat, job.fold) for job in jobs}), len({job.seed for job in jobs})
    print(
        f"{part} part, {_counted(folds, 'outer fold')} with {_counted(seeds, 'seed')} each; every figure is the mean "
        f"over seeds, then folds; p (Holm) is corrected over the {len(runs) - 1} run(s) compared with {runs[0].name}, "
        f"not over metrics or classes"
    )


def _print_pair(first: str, second: str, pair: Paired) -> None:
    methods: dict[str, int] = {}
    rows: list[Sequence[Cell]] = []
    for metric in pair.patients:
        for unit in UNITS:
            difference = getattr(pair, unit).get(metric)
            if difference is not None:
                number = methods.setdefault(difference.method, len(methods) + 1)
                rows.append(_row(difference, number))
    print_table(HEADER, rows, title=f"\n{first} (first) minus {second} (second)")
    for method, number in methods.items():
        print(f"  ({number}) {method}")


def _row(difference: Difference, method: int) -> Sequence[Cell]:
    """One line of the table; p-values keep their reason beside the difference."""
    return (
        difference.metric,
        difference.first,
        difference.second,
        Metric(difference.value, difference.reason, difference.interval),
        *(_p(p_value) for p_value in (difference.p_value, difference.p_holm)),
        "" if difference.p_exact is None else _p(difference.p_exact),
        f"{difference.num_units} {difference.unit}",
        difference.left_out or "",
        f"({method})",
    )


def _p(p_value: float | None) -> str:
    """A p-value; those too small to matter by how much are bounded."""
    if p_value is None:
        return "n/a"
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}" if p_value < 0.1 else f"{p_value:.2f}"


def _print_spreads(spreads: Mapping[str, Mapping[str, SeedSpread]], by_chance: float | None) -> None:
    rows: list[Sequence[Cell]] = [
        (name, metric, spread.mean, Metric(spread.sd, spread.reason), spread.lowest, spread.highest, spread.num_seeds)
        for name, found in spreads.items()
        for metric, spread in found.items()
    ]
    header = ("run", "metric", "mean", "SD over seeds", "lowest", "highest", "seeds")
    print_table(header, rows, title="\neach run by itself")
    if by_chance is not None:
        print(
            f"\nby chance alone a mean C over these folds varies by {format_number(by_chance)} (SD of a random score)"
        )


def _run_tree(run: FinishedRun, jobs: Sequence[Job]) -> dict[str, Any]:
    trainings = {job: run.trainings[job] for job in jobs}
    return {
        "path": str(run.path),
        **run.facts,
        "simulated": run.simulated,
        "missing": [job.name for job in run.missing],
        "metrics": {job.name: metrics_tree(one.prepared.evaluate(one.predictions)) for job, one in trainings.items()},
    }


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
