"""The list of faults is whole: every row from 1 to 27 has a test here that bears its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROWS = range(1, 28)


def test_every_row_of_the_list_has_a_test() -> None:
    names = [
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    numbered = [re.match(r"test_row_(\d\d)_", name) for name in names]
    assert {int(found.group(1)) for found in numbered if found} == set(ROWS)
