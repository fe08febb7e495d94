"""Convert feature files that other tools wrote into one bag store: `python -m asmil.data.pack SOURCE... --out STORE`.

What each file is gets decided by its content and printed. Slides without tissue are listed and left out, and so are
files that cannot be read; what their producer must correct is collected and refused together. Nothing is mixed
silently: one store has one source format, one encoder and one resolution. --resume finishes what was interrupted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from asmil.data.packing.matching import add_label_arguments, label_options
from asmil.data.packing.process import ReaderLimits
from asmil.data.packing.run import PackOptions, pack
from asmil.data.schema import FeatureDtype
from asmil.data.sources import ReadOptions
from asmil.errors import run_command

__all__ = ["PackOptions", "main", "pack"]


_EXAMPLE = """Example: python -m asmil.data.pack features_uni_v1 --out stores/blca --labels clinical.csv --id-column
slide_id --group-column case_id. Exit status: 0 done, 2 refused (nothing is published), 3 bytes changed on their way to
the disk, 4 the machine (disk full, processes that cannot start)."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asmil.data.pack", description=__doc__, epilog=_EXAMPLE)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE", help="file, or folder searched all levels down"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="directory of the new store")
    add_label_arguments(parser)
    parser.add_argument("--dtype", choices=get_args(FeatureDtype), help="default: float32 classic sets, float16 slides")
    reading = parser.add_argument_group("what is read")
    reading.add_argument("--drop-last-column", action="store_true", help="the last feature column is the label")
    reading.add_argument("--patches", type=Path, metavar="FOLDER", help="CLAM's folder of coordinate files")
    reading.add_argument("--features", metavar="NAME", help="which of several feature sets of a file")
    reading.add_argument("--keep-augmented", action="store_true", help="keep the augmented rows of marugoto files")
    facts = parser.add_argument_group("facts that the sources do not state")
    facts.add_argument("--encoder", help="network that made the features")
    facts.add_argument("--magnification", type=_number, help="objective magnification of the tiles")
    facts.add_argument("--mpp", type=_number, help="micrometres per pixel of the tiles")
    facts.add_argument("--tile-size", type=_positive, help="edge of a tile in pixels")
    problems = parser.add_argument_group("problems")
    problems.add_argument("--strict", action="store_true", help="refuse if any slide or file has to be left out")
    problems.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out, and list, slides with NaN, overflow, torn rows or bad ids, which else are refused",
    )
    problems.add_argument(
        "--clip", action="store_true", help="replace values beyond the range of the dtype by its ends, and count them"
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--resume", action="store_true", help="finish an interrupted conversion; the command must be the same"
    )
    running.add_argument(
        "--workers", type=_positive, metavar="N", help="processes that read and convert (default: one per CPU)"
    )
    running.add_argument(
        "--shard-mib",
        type=_positive,
        metavar="MIB",
        help="size of a shard in MiB (default: a sixteenth of the store, 64 to 512)",
    )
    running.add_argument(
        "--reader-memory",
        type=_number,
        default=8.0,
        metavar="GIB",
        help="memory of each process (default: %(default)g)",
    )
    running.add_argument(
        "--reader-timeout",
        type=_number,
        default=600.0,
        metavar="S",
        help="seconds that one slide may take (default: %(default)g)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program name; None takes those of the process.
    """
    given = _parser().parse_args(arguments)
    options = PackOptions(
        read=ReadOptions(
            drop_last_column=given.drop_last_column,
            patches=given.patches,
            keep_augmented=given.keep_augmented,
            features=given.features,
        ),
        dtype=given.dtype,
        labels=label_options(given),
        facts={name: getattr(given, name) for name in ("encoder", "magnification", "mpp", "tile_size")},
        workers=given.workers,
        resume=given.resume,
        clip=given.clip,
        strict=given.strict,
        skip_bad=given.skip_bad,
        shard_mib=given.shard_mib,
        limits=ReaderLimits(memory_bytes=int(given.reader_memory * (1 << 30)), timeout_s=given.reader_timeout),
    )
    pack(given.sources, given.out, options, bar=True)


if __name__ == "__main__":
    run_command(main)
