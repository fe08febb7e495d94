"""The errors users see, and the exit code each one ends a command with.

A message is one paragraph that names the file or object, the field, what was received, what was expected and what to
do next. Everything else that escapes a command is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = [
    "AsmilError",
    "ConfigError",
    "DataError",
    "EnvironmentProblem",
    "IntegrityError",
    "TrainingError",
    "run_command",
]


class AsmilError(Exception):
    """Base of every error a user can cause or fix; `exit_code` is the status its command ends with."""

    exit_code = 1


class ConfigError(AsmilError):
    """A YAML file, an override or a command-line option is wrong."""

    exit_code = 2


class DataError(AsmilError):
    """Bags, labels or splits contradict each other or the configuration."""

    exit_code = 2


class IntegrityError(AsmilError):
    """Stored bytes are not the bytes that were written."""

    exit_code = 3


class EnvironmentProblem(AsmilError):
    """The machine or cluster cannot do what was asked: permissions, disk, devices, missing programs."""

    exit_code = 4


class TrainingError(AsmilError):
    """Training itself failed: non-finite loss, out of memory."""

    exit_code = 5


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command-line entry point and exit with the status its outcome stands for.

    Args:
        main: The command. Its return value is the exit status, None meaning 0.
    """
    try:
        status = main()
    except AsmilError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
