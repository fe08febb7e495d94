"""What is a number in a text source."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from asmil.data.sources import FORMATS, ReadOptions, detect
from asmil.errors import DataError
from tests.data.foreign_classic import WRITERS

OPEN = {form.name: form.open for form in FORMATS}


@pytest.mark.parametrize("damage", [lambda value: f"{value[:-1]}_{value[-1:]}", lambda value: f"{value}x"])
@pytest.mark.parametrize("name", ["uci-c45", "andrews-svm", "comma-sparse", "classic-csv"])
def test_an_underscore_in_a_number_is_damage_although_python_would_skip_it(
    tmp_path: Path, name: str, damage: Callable[[str], str]
) -> None:
    path = WRITERS[name](tmp_path)
    content = path.read_text()
    *_, number = re.finditer(r"(?<=[,:])-?\d[\d.e+]*\d(?=[, \n])", content)
    OPEN[name](path, ReadOptions())
    path.write_text(content[: number.start()] + damage(number[0]) + content[number.end() :])
    with pytest.raises(DataError, match=re.escape(repr(damage(number[0])))):
        OPEN[name](path, ReadOptions())


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\r"])
def test_only_line_feeds_end_lines_when_a_file_is_detected_and_when_it_is_read(tmp_path: Path, separator: str) -> None:
    path = WRITERS["uci-c45"](tmp_path)
    content = path.read_text()
    path.write_bytes(content.replace("\n", f"{separator}x\n", 1).encode())
    with pytest.raises(DataError):
        OPEN[detect(path).format.name](path, ReadOptions())
    path.write_bytes(content.replace("\n", "\r\n").encode())
    assert len(OPEN[detect(path).format.name](path, ReadOptions()).slides) == 3
