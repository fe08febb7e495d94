"""Show what a bag store holds: `python -m asmil.data.inspect STORE`.

Facts, sizes, bag lengths, labels, imported splits and what to know before training come from the index and the tables.
Figures of the features come from a random sample of bags, the same one each time, unless --all is given.

With --json the figures are printed as one JSON object whose keys are the fields of
`asmil.data.inspection.figures.StoreFigures`: format, store, facts, sizes, lengths, labels, splits, features, duplicates
and findings. Lists that the text shortens are complete in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import track

from asmil.data.inspection.figures import inspect_store
from asmil.data.inspection.text import print_sections
from asmil.errors import run_command

__all__ = ["main"]

SAMPLE = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: Without the program name; None takes those of the process.

    Returns:
        0; findings are no errors.

    Raises:
        DataError: There is no store.
        ConfigError: The label table lacks the column of --group-column.
        IntegrityError: Something that was read is damaged.
    """
    given = _parser().parse_args(arguments)
    sample = None if given.all else given.sample
    figures = inspect_store(given.store, sample=sample, group_column=given.group_column, watch=_with_bar)
    try:
        if given.json:
            print(json.dumps(figures.tree(), ensure_ascii=False, allow_nan=False, indent=1))
        else:
            print_sections(figures, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing is left to fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m asmil.data.inspect", description=summary, epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("store", metavar="STORE", help="directory or address of the store")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--group-column", metavar="NAME", help="column of patients, if it has no usual name")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="read every bag for the figures of the features")
    which.add_argument(
        "--sample", type=_positive, default=SAMPLE, metavar="N", help="read N bags for them (%(default)s)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _with_bar(slide_ids: Sequence[str]) -> Iterable[str]:
    """The slides; on a terminal a bar shows how many are read."""
    console = Console(stderr=True)
    return track(slide_ids, description="reading", console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    run_command(main)
