"""Running a command as a user would, and proving that it touched nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asmil.data.pack import main as pack_main
from asmil.data.verify import main as verify_main
from asmil.errors import run_command
from asmil.run import main as run_main

INPUT, INTEGRITY, ENVIRONMENT = 2, 3, 4

Main = Callable[[Sequence[str] | None], int | None]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Both outputs on one line, without the line breaks of a narrow terminal."""
        return " ".join(f"{self.out} {self.err}".split())

    def refused(self, status: int, *parts: str) -> None:
        """Check the status, and that the last line is one error that names these parts somewhere in the output."""
        assert self.status == status, self
        assert self.err.count("error: ") == 1
        assert "Traceback" not in self.err
        missing = [part for part in parts if part not in self.message]
        assert not missing, f"{missing} not in {self.message}"

    def succeeded(self, *parts: str) -> None:
        """Check that the command ended well and said these parts."""
        assert self.status == 0, self
        missing = [part for part in parts if part not in self.message]
        assert not missing, f"{missing} not in {self.message}"


class Commands:
    """The commands of the data plane, run in this process with their exit status.

    Args:
        capsys: Where their output is taken from.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def pack(self, *words: object) -> Outcome:
        """`python -m asmil.data.pack …`."""
        return self._run(pack_main, words)

    def verify(self, *words: object) -> Outcome:
        """`python -m asmil.data.verify …`."""
        return self._run(verify_main, words)

    def run(self, *words: object) -> Outcome:
        """`python -m asmil.run …`."""
        return self._run(run_main, words)

    def _run(self, main: Main, words: Sequence[object]) -> Outcome:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(lambda: main([str(word) for word in words]))
        captured = self._capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, captured.out, captured.err)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._marker,))


def snapshot(*folders: Path) -> dict[str, str]:
    """Every file below the folders with the hash of its content, links with their target, directories as such."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            else:
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
    return found


def edit_manifest(store: Path, **changes: Any) -> None:
    """Change fields of a store's `dataset.json`."""
    path = store / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rehash_shard(store: Path, position: int = 0) -> None:
    """Make `dataset.json` agree with the bytes of a shard, as a careless tool that rewrote the shard would."""
    shards = json.loads((store / "dataset.json").read_text())["shards"]
    content = (store / shards[position]["name"]).read_bytes()
    shards[position] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(store, shards=shards)
