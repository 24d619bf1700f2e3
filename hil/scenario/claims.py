"""What a scenario claims to prove, held against what it expects: a claim that nothing could refute is an error. Pure.

* `gate:NAME` needs an expectation that sees the gate shut and names it (`reason = "NAME"` or `"NAME:code"`), and one,
  from a later mark, that sees it open again or the work go on. A gate that is still shut at the end is told in
  `stays_shut`, with the reason.
* `promise:1-6` needs an expectation of a kind that the promise can fail by (`FITS`).
* `fault:NAME` needs that fault in the timeline; `fault:dst` a beginning in a zone whose clocks change while it lasts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo

from agent.core.gates import RULES
from hil.rigs.faults import FAULTS
from hil.scenario.model import BEGIN, END, Condition, Expectation, Scenario

HARM = frozenset(
    {"reserve", "plugged", "ready_by", "pack", "powered", "low_voltage", "temperature", "ambient", "clock"}
)
"""Gates that keep the car from harm."""
BOUNDS = frozenset({"die_max_c", "power_max_w", "charge_min_percent", "low_voltage_min_v"})
EARNED = frozenset({"slices_kept", "settled"})
SMALL = frozenset({"work_s", "agent_memory_max_mb"})


def missing(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Every claim that is not held, and what is missing for it."""
    for claim in scenario.proves:
        kind, _, name = claim.partition(":")
        match kind:
            case "gate" if name in RULES:
                what = _gate(scenario, name)
            case "promise" if name in FITS:
                fits, needs = FITS[name]
                what = "" if any(fits(one) for one in scenario.expectations) else needs
            case "fault" if name == "dst":
                what = "" if _clocks_change(scenario) else "the clocks do not change while it lasts"
            case "fault" if name in FAULTS:
                struck = {fault.__struct_config__.tag for fault in scenario.faults}
                what = "" if name in struck else f"no step has the fault {name!r}"
            case _:
                what = "it is neither gate:NAME, promise:1-6 nor fault:NAME"
        if what:
            yield claim, what
    for gate in scenario.stays_shut:
        if f"gate:{gate}" not in scenario.proves:
            yield f"gate:{gate}", "it is in [stays_shut] and not in `proves`"


# --- gates --------------------------------------------------------------------------------------------------------


def _gate(scenario: Scenario, name: str) -> str:
    marks = [BEGIN, *(step.mark for step in scenario.steps if step.mark), END]
    shut = [marks.index(one.after) for one in scenario.expectations if _shuts(one, name)]
    if not shut:
        return f'no expectation sees it shut: see = {{ gate = "closed", reason = "{name}:…" }}'
    if name in scenario.stays_shut:
        return ""
    if any(marks.index(one.after) > min(shut) and _opens(one) for one in scenario.expectations):
        return ""
    return "no expectation from a later mark sees it open again; or say in [stays_shut] why it stays shut"


def _shuts(one: Expectation, gate: str) -> bool:
    condition = one.see or one.always
    named = condition is not None and (condition.reason or "").partition(":")[0] == gate
    return named and condition is not None and (condition.gate in {"closed", "hold"} or condition.state == "fault")


def _opens(one: Expectation) -> bool:
    condition = one.see or one.always
    if condition is not None:
        return condition.gate == "open" or condition.computing is True
    return one.total in {"work_s", "openings", "open_s"} and bool(one.at_least)


# --- promises -----------------------------------------------------------------------------------------------------


def _driver_first(one: Expectation) -> bool:
    gone = one.see is not None and (one.see.computing is False or one.see.worker is False)
    return gone or _never(one, lambda it: it.computing is True) or (one.total == "vacate_max_ms" and _bounded(one))


def _no_harm(one: Expectation) -> bool:
    condition = one.see or one.always
    if one.total in BOUNDS:
        return True
    if condition is not None:
        named = (condition.reason or "").partition(":")[0] in HARM
        return (named and condition.gate != "open") or condition.charge_percent_at_least is not None
    return _never(one, lambda it: it.computing is True)


def _nothing_lost(one: Expectation) -> bool:
    seen = one.see
    handed_in = seen is not None and (seen.settled_at_least is not None or seen.outbox_at_most is not None)
    return handed_in or (one.total in EARNED and bool(one.at_least)) or (one.total == "outbox" and _bounded(one))


def _nobody_gets_in(one: Expectation) -> bool:
    refused = one.see is not None and (one.see.refusals_at_least is not None or _reason(one.see) == "self_test")
    return refused or (one.total == "refusals" and bool(one.at_least))


def _says_why(one: Expectation) -> bool:
    return one.always is not None and one.always.explained is True


def _fast_and_small(one: Expectation) -> bool:
    return one.total in SMALL and (one.at_least is not None or one.at_most is not None)


FITS: dict[str, tuple[Callable[[Expectation], bool], str]] = {
    "1": (_driver_first, "no expectation sees the computer given back: see = { computing = false }, or vacate_max_ms"),
    "2": (_no_harm, "no expectation bounds heat, charge or voltage, or sees a gate that guards the car shut"),
    "3": (_nothing_lost, "no expectation counts what was kept or settled, or what is still owed"),
    "4": (_nobody_gets_in, "no expectation sees a refusal: refusals, or the gate self_test"),
    "5": (_says_why, "no expectation asks for it: always = { explained = true }"),
    "6": (_fast_and_small, "no expectation bounds work_s or agent_memory_max_mb"),
}
"""What an expectation for a promise of the design looks like, and what is said where there is none."""


def _never(one: Expectation, says: Callable[[Condition], bool]) -> bool:
    return one.never is not None and says(one.never)


def _bounded(one: Expectation) -> bool:
    return one.at_most is not None


def _reason(condition: Condition) -> str:
    return (condition.reason or "").partition(":")[0]


def _clocks_change(scenario: Scenario) -> bool:
    zone = ZoneInfo(scenario.setup.time_zone)
    begins = dt.datetime.fromisoformat(scenario.setup.begins).replace(tzinfo=zone)
    ends = (begins.astimezone(dt.UTC) + dt.timedelta(milliseconds=scenario.length_ms)).astimezone(zone)
    return begins.utcoffset() != ends.utcoffset()
