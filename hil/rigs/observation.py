"""What a rig sees: the agent and its car at one moment, whichever rig it is, and what a run leaves besides.

`Observation`s are kept in the order of time and are all that expectations are judged by, so the same expectation means
the same on every rig. Times are milliseconds since the scenario began. None: nobody knows.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Why(msgspec.Struct, frozen=True):
    """One reason why the gate is not open, as `driveway why` tells it."""

    gate: str
    code: str
    signal: str


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One look. Counters (from `slices_kept` on) count from the beginning of the scenario and never fall.

    `computing`: a worker has a slice in its hands, or a build, and was not told to stop. `worker`: there is one.
    """

    at_ms: int
    answers: bool = True
    """The agent answers at all; all else is what was known last while it does not."""
    state: str = ""
    gate: str = "closed"
    reasons: tuple[Why, ...] = ()
    linked: bool = False
    worker: bool = False
    computing: bool = False
    lease: str = ""
    outbox: int = 0
    power_cap_w: float = 0.0
    die_c: float | None = None
    power_w: float | None = None
    charge_percent: float | None = None
    pack_power_w: float | None = None
    low_voltage_v: float | None = None
    ambient_c: float | None = None
    price_micro_per_kwh: int | None = None
    accelerator: str = "ready"
    owner: str = "auto"
    slices_kept: int = 0
    settled: int = 0
    """Hand-ins with a verdict that is final."""
    refusals: int = 0
    """Orders, packages and work that the agent refused to believe or to run."""
    vacates: int = 0
    vacate_max_ms: float | None = None
    """The longest from a sign to no more work running."""
    work_s: float = 0.0
    """How long it has computed."""
    energy_wh: float = 0.0
    agent_memory_mb: float | None = None
    """Resident memory of the daemon, where it is a process."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One figure against its limit. `relaxed` says why a rig's limit is not the scenario's own; empty: it is."""

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    relaxed: str = ""
    held: bool
    detail: str = ""


class LeaseSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One lease, from its opening to its end; `outcome` is `finished`, why it was given back, or `at work`."""

    job: str
    start_ms: int
    end_ms: int
    outcome: str
    slices_done: int
    slices_wanted: int


class Vacated(msgspec.Struct, frozen=True, kw_only=True):
    """The computer was given back: on what sign, and how long it took until nothing ran, and until it was free."""

    at_ms: int
    cause: str
    idle_ms: float | None
    gone_ms: float | None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a rig found when it looked behind itself at the end of a run.

    `measurements` are its own (promises, books, attestations); `versions` what took part; `files` what it left in the
    run's folder, by what they are; `notes` what a reader of the report must know.
    """

    measurements: tuple[Measurement, ...] = ()
    leases: tuple[LeaseSeen, ...] = ()
    vacates: tuple[Vacated, ...] = ()
    versions: dict[str, str] = {}
    files: dict[str, Path] = {}
    notes: tuple[str, ...] = ()
