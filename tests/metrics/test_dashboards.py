"""The dashboard, the alert rules and docs/metrics.md name metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from agent.metrics.families import ALL
from agent.metrics.text import Family

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "metrics" / "grafana.json"
ALERTS = ROOT / "docs" / "metrics" / "alerts.yml"
FETCHED = ROOT / "build" / "promtool" / "x" / "usr" / "bin" / "promtool"
OTHERS = {"node_textfile_mtime_seconds": {"file"}}
"""Of node_exporter."""
SCRAPED = {"instance", "job"}
"""Labels that the scraper adds."""
WORD = re.compile(r"\b(?:driveway|process|node)_[a-z_]+\b(?:\{([^}]*)\})?")


def known() -> dict[str, set[str]]:
    """Every sample's name with its labels."""
    names: dict[str, set[str]] = dict(OTHERS)
    for family in ALL:
        names[family.sample_name] = {"quantile"} if family.kind == "summary" else set(family.labels)
        if family.kind == "summary":
            names[f"{family.name}_count"] = set()
    return names


def wrong(expression: str) -> list[str]:
    """What in an expression is no metric, or no label of its metric."""
    names, found = known(), []
    for match in WORD.finditer(expression):
        name = match[0].partition("{")[0]
        if name not in names:
            found.append(name)
            continue
        labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", match[1] or ""))
        found += sorted(f"{name}{{{label}}}" for label in labels - names[name] - SCRAPED)
    return found


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in board()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target


def rules() -> list[dict[str, str]]:
    """The rules' own lines: `alert`, `expr` and `action`. That the file is YAML, promtool says."""
    blocks = ALERTS.read_text("utf-8").split("      - alert: ")[1:]
    return [
        {"alert": block.partition("\n")[0], **dict(re.findall(r"^ +(\w+): (.*)$", block, re.MULTILINE))}
        for block in blocks
    ]


@pytest.mark.parametrize(("title", "target"), list(targets()))
def test_every_panel_shows_what_exists(title: str, target: dict[str, Any]) -> None:
    expression = target["expr"]
    assert WORD.search(expression), title
    assert wrong(expression) == []
    assert 'instance=~"$instance"' in expression, "of the car that was chosen"
    asked = set(re.findall(r"\{\{ ?(\w+) ?\}\}", target["legendFormat"]))
    labels = set().union(*(known()[match[0].partition("{")[0]] for match in WORD.finditer(expression)))
    assert asked <= labels | SCRAPED, title


def test_the_board_is_one_that_can_be_laid_out() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    variables = {one["name"] for one in board()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels)))
    assert used == variables


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_is_about_what_exists_and_says_what_to_do(rule: dict[str, str]) -> None:
    assert wrong(rule["expr"]) == []
    assert rule["action"]
    for page in re.findall(r"docs/\w+\.md", rule["action"]):
        assert (ROOT / page).exists()


@pytest.mark.parametrize(
    "expression", ["driveway_sate", 'driveway_state{gate="x"}', "driveway_slices_kept", "process_cpu_seconds"]
)
def test_what_does_not_exist_would_be_found(expression: str) -> None:
    assert wrong(expression) != []


def test_every_metric_is_documented_as_it_is() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|info|summary) \| (.*?) \| (.*) \|$", text, re.MULTILINE)

    def row(family: Family) -> tuple[str, str, str, str]:
        labels = ("quantile",) if family.kind == "summary" else family.labels
        return family.sample_name, family.kind, ", ".join(f"`{label}`" for label in labels), family.help

    assert rows == [row(family) for family in ALL]


def test_promtool_takes_the_rules() -> None:
    tool = shutil.which("promtool") or (str(FETCHED) if FETCHED.exists() else None)
    if tool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    said = subprocess.run([tool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
