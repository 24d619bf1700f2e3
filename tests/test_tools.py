"""What is lacking is skipped, or fails where it is required; and what `.ci/run` requires is what is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools import lacking

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_what_is_required_fails(monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]) -> None:
    monkeypatch.setenv("DRIVEWAY_REQUIRE_TOOLS", required)
    with pytest.raises(outcome, match="no such program"):
        lacking("no such program")


def test_every_requirement_is_documented_and_set_where_it_is_said() -> None:
    used = set[str]()
    for path in (ROOT / "tests").rglob("*.py"):
        used |= set(re.findall(r"\bDRIVEWAY_REQUIRE_[A-Z]+\b", path.read_text("utf-8")))
    rows = re.findall(
        r"^\| `(DRIVEWAY_REQUIRE_[A-Z]+)` \|(.*)$", (ROOT / "docs" / "proof.md").read_text("utf-8"), re.MULTILINE
    )
    assert used == {name for name, _ in rows}
    set_by_ci = set(re.findall(r"\b(DRIVEWAY_REQUIRE_[A-Z]+)=1", (ROOT / ".ci" / "run").read_text("utf-8")))
    assert set_by_ci == {name for name, what in rows if "set by `.ci/run`" in what}
