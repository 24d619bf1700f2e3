"""One scenario on one rig, from the rig's building up to the judgement: what `driveway-hil run` and the tests do."""

from __future__ import annotations

import datetime as dt
import enum
import time
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from hil.rigs.interface import Rig, RigState
from hil.rigs.observation import Evidence, Measurement, Observation
from hil.scenario.judge import Strictness, judge
from hil.scenario.model import Scenario
from hil.scenario.timeline import Happened, StuckError, Timeline


class Verdict(enum.StrEnum):
    """What came of a run. `error`: the rig broke, which is evidence of nothing."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run, with everything that was seen."""

    scenario: Scenario
    rig: str
    verdict: Verdict
    why: str = ""
    """Why it was skipped, or what broke."""
    started_at: str = ""
    wall_s: float = 0.0
    lasted_ms: int = 0
    observations: tuple[Observation, ...] = ()
    marks: dict[str, int] = {}
    happened: tuple[Happened, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    evidence: Evidence = Evidence()


def play(scenario: Scenario, kind: type[Rig], folder: Path) -> Run:
    """Play it. Never raises for what the scenario or the rig does: that is in the run."""
    if why := kind.why_not(scenario):
        return Run(scenario=scenario, rig=kind.name, verdict=Verdict.SKIPPED, why=why)
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    began_s = time.monotonic()
    rig = kind(scenario, folder)
    timeline = Timeline(scenario, rig)
    stuck, evidence, lasted_ms = "", Evidence(), 0
    try:
        with rig:
            rig.transition(RigState.RUNNING)
            try:
                timeline.play()
            except StuckError as error:
                stuck = str(error)
            lasted_ms = rig.now_ms
            rig.transition(RigState.INSTALLED)
            evidence = rig.evidence()
    except Exception as error:  # noqa: BLE001 - one broken rig is no reason to lose the other scenarios
        return Run(
            scenario=scenario,
            rig=kind.name,
            verdict=Verdict.ERROR,
            why=str(error) if isinstance(error, DrivewayError | OSError) else repr(error),
            started_at=started_at,
            wall_s=time.monotonic() - began_s,
            observations=tuple(rig.observations),
            happened=tuple(timeline.happened),
        )
    strictness = Strictness(kind.name, kind.time_factor, kind.resolution_ms)
    measured = judge(scenario.expectations, rig.observations, timeline.marks, strictness)
    if stuck:
        measured.insert(0, Measurement(name="it came to its end", value=None, unit="", held=False, detail=stuck))
    measured += evidence.measurements
    return Run(
        scenario=scenario,
        rig=kind.name,
        verdict=Verdict.PASSED if all(one.held for one in measured) else Verdict.FAILED,
        started_at=started_at,
        wall_s=time.monotonic() - began_s,
        lasted_ms=lasted_ms,
        observations=tuple(rig.observations),
        marks=timeline.marks,
        happened=tuple(timeline.happened),
        measurements=tuple(measured),
        evidence=evidence,
    )
