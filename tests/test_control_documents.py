"""docs/control.md and docs/schemas are those of the code, and what real daemons answer is valid by them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from agent.control import MAX_LINE_BYTES, PROTOCOL, VERBS, Code, ControlRequest, needs
from agent.peers import Bounds, Rank
from hil import control_schema

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "control.md").read_text("utf-8")


def schema(name: str) -> Any:
    return json.loads((control_schema.FOLDER / f"{name}.schema.json").read_text("utf-8"))


def test_the_schemas_are_made_from_the_code_of_today() -> None:
    assert control_schema.wrong() == [], "python -m hil.control_schema --write"


def test_a_schema_that_is_old_missing_or_left_over_would_be_found(tmp_path: Path) -> None:
    for name, text in control_schema.documents().items():
        (tmp_path / name).write_text(text, "utf-8")
    assert control_schema.wrong(tmp_path) == []
    (tmp_path / "why.schema.json").write_text("{}", "utf-8")
    (tmp_path / "status.schema.json").unlink()
    (tmp_path / "gone.schema.json").write_text("{}", "utf-8")
    assert control_schema.wrong(tmp_path) == ["gone.schema.json", "status.schema.json", "why.schema.json"]


@pytest.mark.parametrize("name", sorted(control_schema.documents()))
def test_every_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((control_schema.FOLDER / name).read_text("utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        {"verb": "status"},
        {"verb": "leases", "limit": 1000},
        {"verb": "leases", "limit": 1001},
        {"verb": "pause", "pause": {"for_ms": 0}},
        {"verb": "pause", "pause": {"for_ms": 60_000}},
        {"verb": "pause", "unless_cold": True},
        {"verb": "teleport"},
        {"verb": "owner_set", "wishes": {"classes": ["ocr"]}},
        {"verb": "owner_clear", "clear": ["schedule"]},
        {"verb": "owner_clear", "clear": ["everything"]},
        {"limit": 3},
    ],
)
def test_the_schema_of_requests_takes_what_the_daemon_takes(line: dict[str, Any]) -> None:
    try:
        msgspec.json.decode(json.dumps(line), type=ControlRequest)
        takes = True
    except msgspec.ValidationError:
        takes = False
    assert jsonschema.Draft202012Validator(schema("request")).is_valid(line) is takes


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]


def test_every_verb_is_documented_with_who_may_say_it() -> None:
    told = {cells[0]: set(re.findall(r"`(\w+)`", cells[2])) for cells in rows("Who may do what")[2:]}
    assert told == {rank.name.lower(): {verb for verb in VERBS if needs(verb) is rank} for rank in Rank}


def test_every_code_is_documented() -> None:
    assert {cells[0].strip("`") for cells in rows("What is said")[2:]} == set(get_args(Code)) - {""}


def test_the_bounds_are_documented_as_they_are() -> None:
    bounds, text = Bounds(), "\n".join(" ".join(cells) for cells in rows("What a client cannot do"))
    for said in (
        f"longer than {MAX_LINE_BYTES:,} bytes, or without an end for {bounds.question_s:g} s",
        f"not reading the answer for {bounds.reading_s:g} s",
        f"{bounds.guests} in all, {bounds.guests_of_one} of one user, {bounds.places_kept} of the {bounds.guests} kept",
        f"{bounds.connects_per_s:g} a second are let in",
        f"{bounds.questions_per_s:g} questions a second of one user ({bounds.questions_burst} at once)",
        f"given up after {bounds.answer_s:g} s",
    ):
        assert said in text
    assert bounds.reading_at_once == 4
    assert "four at a time are read from the disk" in text
    assert f"The protocol is number {PROTOCOL} " in TEXT
