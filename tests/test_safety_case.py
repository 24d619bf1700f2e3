"""Every test that the safety case names exists, and every claim names one: each row, and each point about incidents."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "safety-case.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[^`]+?\.py)(?:::([^`]+))?`", TEXT)
CLAIMS = [
    line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| claim", "| attacker"))
]
HEADING = "## Incidents and updates"
POINTS = re.split(r"\n(?=\* )", TEXT.partition(HEADING)[2].partition("\n## ")[0])[1:]


@cache
def functions_of(file: str) -> frozenset[str]:
    """Those that pytest runs: functions of the module, and methods of its classes, no helper of either."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    found = (node for body in bodies for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in found if node.name.startswith("test_"))


def test_it_names_tests() -> None:
    assert len(NAMED) > 90
    assert len(CLAIMS) > 24
    named = [point.split("**")[1] for point in POINTS]
    assert {"What is known of an incident", "How it is stopped", "What runs is known"} <= set(named)


def test_every_mention_is_looked_at() -> None:
    """One that was misspelt in its form would be no name, and missed by the rest."""
    assert len(NAMED) == TEXT.count("tests/")


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_a_named_test_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"the safety case names {file}"
    assert not name or name in functions_of(file), f"the safety case names {file}::{name}"
    assert functions_of(file)


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_names_a_test(claim: str) -> None:
    assert "`tests/" in claim.rsplit("|", 2)[-2], f"nothing holds: {claim[:80]}"


@pytest.mark.parametrize("point", POINTS)
def test_every_point_about_incidents_names_a_test(point: str) -> None:
    assert "`tests/" in point, f"nothing holds: {point[:80]}"
