"""Row 19: experiment files that try to run code, explode, or say something nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.support import INPUT, Commands, snapshot
from tests.run_support import CLASSIFICATION, Tiny, write_file

ALIASES = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 7))


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """An experiment file of known lines; its store does not exist, and nobody should get as far as asking for it."""
    return write_file(tmp_path, CLASSIFICATION, {})


@pytest.mark.parametrize(
    ("added", "place", "says"),
    [
        ("x: !!python/object/apply:pathlib.Path.touch [{marker}]\n", ("x:", 4), "could not determine a constructor"),
        ("x: !!python/name:os.system ''\n", ("x:", 4), "could not determine a constructor"),
        ("train: {{epochs: 2}}\n", ("train:", 1), "duplicate key 'train'"),
        ("x:\n  y: 1\n  y: 2\n", ("  y: 2", 3), "duplicate key 'y'"),
        ("a0: &a0 [1]\n" + ALIASES, ("a1:", 10), "aliases (*name) are not supported"),
        ("x:\n\ty: 1\n", ("\ty", 1), "found character '\\t' that cannot start any token"),
    ],
    ids=["object", "name", "duplicate", "nested duplicate", "alias bomb", "tab"],
)
def test_row_19_hostile_or_ambiguous_yaml_is_refused_with_line_and_column(
    tiny: Tiny, tmp_path: Path, commands: Commands, added: str, place: tuple[str, int], says: str
) -> None:
    text = tiny.file.read_text() + added.format(marker=tmp_path / "marker")
    tiny.file.write_text(text)
    start, column = place
    number = max(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start))
    before = snapshot(tmp_path)
    commands.run(tiny.file, "--out", tmp_path / "out").refused(
        INPUT, f"{tiny.file}, line {number}, column {column}: {says}"
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("train.epochz", "'train.epochs'"),
        ("model.aggregator.tokns", "'model.aggregator.tokens'"),
        ("data.labels.traget", "'data.labels.target'"),
        ("protocl", "'protocol'"),
    ],
)
def test_row_19_an_unknown_key_is_named_with_line_and_nearest_key(
    tmp_path: Path, commands: Commands, path: str, near: str
) -> None:
    wrong = write_file(tmp_path, CLASSIFICATION, {path: 2})
    key = path.rpartition(".")[2]
    (number,) = [n for n, line in enumerate(wrong.file.read_text().splitlines(), 1) if line.strip() == f"{key}: 2"]
    before = snapshot(tmp_path)
    commands.run(wrong.file, "--out", tmp_path / "out").refused(
        INPUT, f"{wrong.file}: {path}: unknown key (line {number}); did you mean {near}?"
    )
    assert snapshot(tmp_path) == before


def test_row_19_an_unknown_key_of_an_override_has_no_line(tiny: Tiny, tmp_path: Path, commands: Commands) -> None:
    outcome = commands.run(tiny.file, "--set", "train.epochz=2", "--out", tmp_path / "out")
    outcome.refused(INPUT, f"{tiny.file}: train.epochz: unknown key; did you mean 'train.epochs'?")


def test_row_19_a_file_too_large_to_be_a_configuration_is_not_parsed(
    tiny: Tiny, tmp_path: Path, commands: Commands
) -> None:
    tiny.file.write_text(tiny.file.read_text() + "#" * 1_000_000)
    commands.run(tiny.file, "--out", tmp_path / "out").refused(INPUT, f"{tiny.file}: ", "at most 1000000")
