"""Shared by the tests of building plans: a car at its build, and what came of it."""

from __future__ import annotations

import msgspec

from agent.core.effects import (
    EffectType,
    Report,
    StartBuild,
    StopWorker,
)
from agent.core.events import (
    PlansMissing,
    WorkerGone,
)
from agent.core.state import initial
from tests.core.stories import until
from tests.core.world import POLICY, Shell

ONE, TWO = "1" * 64, "2" * 64
PACKAGE = "a" * 64
"""What the grants of these tests are for."""
REPLACE = msgspec.structs.replace


def missing(shell: Shell, *packages: str) -> list[EffectType]:
    return shell.tell(PlansMissing(at_ms=shell.now_ms, packages=packages))


def at_build(*packages: str, **policy: object) -> Shell:
    """The gate is open and a build is under way."""
    shell = Shell(state=initial("unit-1", REPLACE(POLICY, **policy), 0))
    missing(shell, *(packages or (ONE,)))
    shell.open_the_gate()
    assert isinstance(until(shell, StartBuild), StartBuild)
    return shell


def builds(shell: Shell) -> list[str]:
    return [one.package_sha256 for one in shell.effects if isinstance(one, StartBuild)]


def outcomes(shell: Shell) -> list[object]:
    """What the log says came of the builds."""
    return [one.fields["outcome"] for one in shell.effects if isinstance(one, Report) and one.name == "plan_build"]


def ends(shell: Shell, *, expected: bool = True, detail: str = "") -> list[EffectType]:
    """The build's process is over."""
    shell.waiting = [one for one in shell.waiting if not isinstance(one, StartBuild | StopWorker)]
    return shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=expected, detail=detail))
