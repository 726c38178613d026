"""docs/security.md names a test for each risk, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
MODEL = PAGE[PAGE.index("## Threat model") : PAGE.index("## What is not defended")]
ROWS = [row.strip("|").split("|") for row in MODEL.splitlines() if row.startswith("|")][2:]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", MODEL)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_named_test_exists(file, name):
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in functions


def test_each_risk_has_a_defence_and_a_test():
    assert len(ROWS) > 25
    for risk, defence, tests in ROWS:
        assert len(risk.strip()) > 5
        assert len(defence.strip()) > 5
        assert re.search(r"`tests/[\w/]+\.py::\w+`", tests), risk
