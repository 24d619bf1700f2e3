"""Every reason that the core can name is told in a sentence of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from agent.core.awake import Awake
from agent.core.events import Quality
from agent.core.findings import GateState, Reason
from agent.core.gates import RULES
from agent.core.plan import CLOCK_WRONG
from agent.core.policy import Policy
from agent.core.signals import PAUSE_REQUESTED
from agent.explain import SENTENCES, sentence

CORE = Path(__file__).parent.parent / "agent" / "core"
LOOKS = [*sorted((CORE / "looks").glob("*.py")), CORE / "gates.py", CORE / "world.py"]
PROBLEMS = {"walltime.py": "clock_", "thermal_watch.py": ""}
"""Where a problem is named that a look passes on as its code, and how those names begin."""


def constants(node: ast.expr) -> set[str]:
    """The words that an argument may be."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def codes_in(file: Path) -> set[str]:
    """The literal codes of findings in a file: the first argument of Finding, the second of expect."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            place = {"Finding": 0, "expect": 1}.get(name)
            if place is not None and len(node.args) > place:
                found |= constants(node.args[place])
    return found


def problems_in(file: Path, start: str) -> set[str]:
    """The names of problems in a file: what is returned, or kept as `problem`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        value = node.value if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) else None
        for part in value.elts if isinstance(value, ast.Tuple) else [value]:
            found |= set() if part is None else constants(part)
    return {name for name in found if name and name.startswith(start) and name.replace("_", "").isalpha()}


def readings() -> set[str]:
    """Why a leaf may have no value: every bad quality, and what `Vehicle.read` finds wrong by itself."""
    source = ast.parse((CORE / "signals.py").read_text("utf-8"))
    calls = [
        node for node in ast.walk(source) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reading"
    ]
    told = set().union(*(constants(call.args[2]) for call in calls))
    return {f"signal_{name}" for name in {*told, *(quality.value for quality in Quality)} - {"", "good"}}


def every_code() -> set[str]:
    codes = set().union(*map(codes_in, LOOKS))
    codes |= set().union(*(problems_in(CORE / name, start) for name, start in PROBLEMS.items()))
    codes |= readings() | {"settling"}
    return codes | {f"{name}_not_long_enough" for name, rule in RULES.items() if rule.timing.patient}


def test_the_search_finds_codes_of_every_kind() -> None:
    codes = every_code()
    assert len(codes) > 60
    assert {
        "moving",
        "clock_jumped",
        "power_not_obeyed",
        "signal_stale",
        "signal_fault",
        "parked_not_long_enough",
    } <= codes


@pytest.mark.parametrize("code", sorted(every_code()))
def test_every_code_has_a_sentence_of_its_own(code: str) -> None:
    assert code in SENTENCES


def test_every_budget_of_keeping_awake_has_a_sentence() -> None:
    for awake, policy in (
        (Awake(used_ms=10**9), Policy(keep_awake=True)),
        (Awake(used_wh=10**9), Policy(keep_awake=True)),
        (Awake(), Policy(keep_awake=True, keep_awake_budget_wakes=0)),
    ):
        refused = awake.step(policy, 0, work=True, charging=False)[0].refused
        assert refused in SENTENCES
    assert CLOCK_WRONG in SENTENCES


def test_no_sentence_is_for_nothing() -> None:
    alone = {code for code in SENTENCES if code.startswith("keep_awake")} | {"owner_paused_in_car"}
    assert set(SENTENCES) - alone - every_code() == set()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            Reason("tariff_waiting", "tariff", GateState.CLOSED, "tariff.price", 0.272, 0.1, "USD/kWh", 0),
            "Energy costs 0.272 now; cheaper hours are chosen (at most 0.1), and it waits for them.",
        ),
        (
            Reason("signal_stale", "reserve", GateState.CLOSED, "Charge", None, 52.0, "%", 0),
            "Charge has not been seen for too long; until it is well, it counts against the work.",
        ),
        (
            Reason("signal_stale", "occupied", GateState.CLOSED, "Door", None, False, "", 0),
            "Door has not been seen for too long; until it is well, the driver may be here.",
        ),
        (
            Reason("demand_response", "demand", GateState.CLOSED, "grid.demand", "", "", "", 0),
            "The grid has asked for relief: no detail.",
        ),
        (
            Reason("demand_response", "demand", GateState.CLOSED, "grid.demand", "\x1b[2Jpeak\n", "", "", 0),
            "The grid has asked for relief: [2Jpeak .",
        ),
        (
            Reason("owner_paused", "owner", GateState.CLOSED, PAUSE_REQUESTED, True, False, "", 0),
            "The owner paused the work with the switch in the car; it goes on when that is released.",
        ),
        (
            Reason("consent_missing", "consent", GateState.CLOSED, "owner.consent_version", 0, 3, "", 0),
            "The owner has not agreed to version 3 of the terms, which is in force. See `driveway consent`.",
        ),
        (
            Reason("power_not_obeyed", "temperature", GateState.CLOSED, "compute.power", 12.0, 43.5, "watt", 0),
            "The computer drew more than the 43.5 W to which it was held (now: 12 W); it rests, then tries again.",
        ),
        (
            Reason("charge_below_reserve", "reserve", GateState.CLOSED, "Charge", 51.26, 55.0, "%", 0),
            "The battery is at 51.3 %; work needs more than 55 % to keep the owner's reserve.",
        ),
    ],
)
def test_numbers_read_well_and_signals_say_what_they_count_as(reason: Reason, said: str) -> None:
    assert sentence(reason) == said
