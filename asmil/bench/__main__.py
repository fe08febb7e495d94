"""The command line of the benches: `python -m asmil.bench {step,memory,read,pack}`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from asmil import bench
from asmil.bench.packing import pack_rows
from asmil.bench.reading import read_rows
from asmil.bench.steps import memory_row, peak_memory, step_rows
from asmil.errors import ConfigError, run_command
from asmil.report.tables import print_table

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print.

    Args:
        arguments: The words after the command; None takes them from the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    if options.what == "memory":
        _use_device(options)
        print(json.dumps(peak_memory(options.device)))
        return 0
    benches: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
        "step": _step,
        "read": lambda given: read_rows(bags=given.bags, processes=given.processes, folder=given.folder),
        "pack": lambda given: pack_rows(gib=given.gib, workers=given.workers, folder=given.folder),
    }
    rows = benches[options.what](options)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for table in _tables(rows):
        print_table(list(table[0]), [list(row.values()) for row in table])
    return 0


def _step(options: argparse.Namespace) -> list[dict[str, Any]]:
    _use_device(options)
    return [*step_rows(device=options.device), memory_row(options.device)]


def _use_device(options: argparse.Namespace) -> None:
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {options.device}: this machine has no CUDA device; use cpu")
    if options.device == "cpu":
        torch.set_num_threads(1)


def _tables(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows cut where the columns change."""
    tables: list[list[dict[str, Any]]] = []
    for row in rows:
        if tables and list(tables[-1][0]) == list(row):
            tables[-1].append(row)
        else:
            tables.append([row])
    return tables


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asmil.bench", description=bench.__doc__)
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what, text in (("step", "the training step"), ("memory", "peak memory of the training step")):
        part = _add(whats, what, text)
        part.add_argument("--device", default="cpu", help="cpu (CPU time) or cuda (wall time)")
    read = _add(whats, "read", "reading random bags, page cache warm, CPU time")
    read.add_argument("--bags", type=whole_number, default=200, help="bags in the store (default: %(default)s)")
    read.add_argument("--processes", type=whole_number, default=4, help="readers side by side (default: %(default)s)")
    pack = _add(whats, "pack", "converting TRIDENT-layout files, page cache warm, wall time and memory")
    pack.add_argument("--gib", type=positive_number, default=1.0, help="size of the source (default: %(default)s)")
    pack.add_argument("--workers", type=whole_number, default=2, help="processes that convert (default: %(default)s)")
    for part in (read, pack):
        part.add_argument("--folder", type=Path, help="where the files are made (default: the temporary directory)")
    return parser


def _add(whats: Any, what: str, text: str) -> argparse.ArgumentParser:
    part: argparse.ArgumentParser = whats.add_parser(what, help=text, description=text)
    part.add_argument("--json", action="store_true", help="print the rows as JSON")
    return part


def whole_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return value


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


if __name__ == "__main__":
    run_command(main)
