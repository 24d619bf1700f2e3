"""A scenario as values: the car as it begins, the steps of its timeline, and what is expected.

    Scenario = Setup + steps (and daily ones) + expectations

A step waits for its moment (since the beginning, or since the step before), then for a condition where it has one, and
then something happens or goes wrong. A step may set a mark, and expectations count from marks. Everything that the
agent promises anyway is checked on every run and need not be written down.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from agent.core.findings import GateState
from agent.core.model import Readiness
from agent.core.policy import Policy
from hil.rigs.faults import Fault
from hil.rigs.stimuli import Celsius, Percent, Stimulus, Watts

BEGIN, END = "begin", "end"
"""Marks that every scenario has."""
RigName = Literal["sim", "sil", "vm", "bench"]
RIG_NAMES: tuple[str, ...] = get_args(RigName)
Start = Literal["parked", "unplugged", "driving"]
Activity = Literal["blocked", "ready", "running", "yielding", "paused", "fault"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Counter = Literal["slices_kept", "settled", "vacates", "refusals", "work_s", "energy_wh"]
Extreme = Literal[
    "die_max_c", "power_max_w", "vacate_max_ms", "charge_min_percent", "low_voltage_min_v", "agent_memory_max_mb"
]
Duration = Literal["open_s", "hold_s", "closed_s", "linked_s"]
Count = Literal["openings", "leases"]
Last = Literal["charge_percent", "outbox"]
Quantity = Counter | Extreme | Duration | Count | Last
UNITS = {"_ms": "ms", "_s": "s", "_wh": "Wh", "_c": "°C", "_w": "W", "_v": "V", "_percent": "%", "_mb": "MB"}


def unit_of(name: str) -> str:
    """The unit in a quantity's name; empty for a count."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a scenario's file."""


class Setup(_Table, frozen=True):
    """The car as the scenario begins. `begins` is local wall time in `time_zone`, without an offset.

    `parked`: stands locked, empty and plugged in, since long enough that it has cooled down.
    """

    start: Start = "parked"
    charge_percent: Percent = 70.0
    charge_limit_percent: Percent = 90.0
    charger_w: Watts = 7_400.0
    ambient_c: Celsius = 15.0
    battery_wh: Annotated[float, msgspec.Meta(gt=0, le=200_000)] = 75_000.0
    begins: str = "2026-02-03T19:00"
    time_zone: str = "UTC"
    falls_asleep: bool = False
    """By itself, ten minutes after anything happened, unless it charges or is kept awake."""
    slice_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    """How long a slice takes in virtual time; elsewhere the computer says."""
    jobs: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 4
    """Put up before the beginning, where there is a real dispatcher."""
    seed: int = 1
    """Of what is left to chance in virtual time (how long a slice takes, when an answer comes)."""


class Condition(_Table, frozen=True):
    """What an observation shows; all that is given must be so.

    `reason` is a gate's name (any of its reasons), or `gate:code`.
    """

    answers: bool | None = None
    state: Activity | None = None
    gate: GateState | None = None
    reason: str | None = None
    linked: bool | None = None
    worker: bool | None = None
    computing: bool | None = None
    leased: bool | None = None
    accelerator: Readiness | None = None
    die_c_at_most: float | None = None
    die_c_at_least: float | None = None
    power_w_at_most: float | None = None
    power_w_at_least: float | None = None
    power_cap_w_at_most: float | None = None
    charge_percent_at_least: float | None = None
    charge_percent_at_most: float | None = None
    slices_kept_at_least: int | None = None
    settled_at_least: int | None = None
    outbox_at_most: int | None = None
    outbox_at_least: int | None = None
    refusals_at_least: int | None = None
    explained: bool | None = None
    """Whether a gate that is not open names at least one reason, and each has a sentence in `driveway why`."""


class Step(_Table, frozen=True):
    """One step: `at_ms` since the beginning, or `after_ms` since the step before; then `when`, then what happens."""

    at_ms: int | None = None
    after_ms: int = 0
    when: Condition | None = None
    timeout_ms: int = 60_000
    """How long `when` may take; a run in which it takes longer is stuck, and has failed."""
    mark: str = ""
    stimulus: Stimulus | None = None
    fault: Fault | None = None
    lasts_ms: int | None = None
    """How long the fault lasts; None: to the end."""
    line: int = 0


class Expectation(_Table, frozen=True):
    """What must be seen. It is of one of four kinds.

    * `see` must be so `within` a time after a mark;
    * `always` must be so, `never` must not be so, at any time between two marks;
    * `total`, a quantity between two marks, must be `at_least` and `at_most` so much.

    `settle_ms` leaves out the first moments after the mark. `rigs`: only there; empty: everywhere.
    """

    what: str = ""
    see: Condition | None = None
    always: Condition | None = None
    never: Condition | None = None
    total: Quantity | None = None
    after: str = BEGIN
    until: str = END
    within_ms: int | None = None
    settle_ms: int = 0
    at_least: float | None = None
    at_most: float | None = None
    rigs: tuple[RigName, ...] = ()
    line: int = 0


class Daily(_Table, frozen=True):
    """A step of every such day, at a local time of the car's zone."""

    days: tuple[Weekday, ...]
    local_time: str
    stimulus: Stimulus


class Scenario(_Table, frozen=True):
    """One scenario. `proves` are the gates, promises and faults that it is for (`gate:parked`, `promise:1`)."""

    name: str
    title: str
    why: str
    proves: tuple[str, ...]
    setup: Setup
    policy: Policy
    policy_changes: dict[str, object]
    """What the file says of the policy, for rigs that write a configuration."""
    steps: tuple[Step, ...]
    daily: tuple[Daily, ...]
    expectations: tuple[Expectation, ...]
    length_ms: int
    not_on: dict[RigName, str]
    """Rigs that it is not for, and why."""
    stays_shut: dict[str, str] = {}
    """Gates that are shut at the end of it, and why it does not wait for them."""

    @property
    def length_s(self) -> float:
        """From its beginning to its end, if nothing has to be waited for."""
        return self.length_ms / 1000

    @property
    def stimuli(self) -> tuple[Stimulus, ...]:
        """Everything that happens."""
        once = tuple(step.stimulus for step in self.steps if step.stimulus is not None)
        return once + tuple(one.stimulus for one in self.daily)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Everything that goes wrong."""
        return tuple(step.fault for step in self.steps if step.fault is not None)
