"""Every test that the safety case names exists, and every claim of its tables names one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "safety-case.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
CLAIMS = [
    line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| claim", "| attacker"))
]


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_it_names_tests() -> None:
    assert len(NAMED) > 40
    assert len(CLAIMS) > 12


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_a_named_test_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"the safety case names {file}"
    assert not name or name in functions_in(file), f"the safety case names {file}::{name}"
    assert any(test.startswith("test_") for test in functions_in(file))


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_names_a_test(claim: str) -> None:
    assert "`tests/" in claim.rsplit("|", 2)[-2], f"nothing holds: {claim[:80]}"
