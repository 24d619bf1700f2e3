"""Everything the core knows, as one frozen value; `agent.core.machine.step` makes the next one."""

from __future__ import annotations

import enum
import zlib

import msgspec

from agent.core.awake import Awake
from agent.core.builds import Build, Builds
from agent.core.energy import Battery, Meter
from agent.core.events import ComputeSeen
from agent.core.gates import Gates, shut
from agent.core.kept import TimeOff, with_kept
from agent.core.lease import Asking, Lease, Pending
from agent.core.model import SUPPOSED_READY, Accelerator, JobKey, Kept, Pace, Spent
from agent.core.policy import Policy
from agent.core.signals import CHARGING, Vehicle
from agent.core.speeds import Speeds
from agent.core.tariff import Prices, Stay
from agent.core.thermal import Heat
from agent.core.traffic import Traffic
from agent.core.walltime import UTC, WallClock, Zone
from agent.core.world import FAR_MS, Owner, World


class WorkerPhase(enum.StrEnum):
    """Where the worker process is in its life."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    BUILDING = "building"
    """It builds an engine plan; it belongs to no customer, and ends with the build."""
    STOPPING = "stopping"


LOAD_MARGIN_MS = 5_000
"""Besides what a package says of its load: the shell's own watchdog comes first, and knows more to tell."""
LOAD_SLOWEST_PERMILLE = 100
"""No load is thought to be stretched by more than this pace would."""


class WorkerState(msgspec.Struct, frozen=True):
    """The inference worker as the core knows it."""

    phase: WorkerPhase = WorkerPhase.ABSENT
    customer: str = ""
    package_sha256: str = ""
    pid: int | None = None
    executor: str = ""
    device: str = ""
    package: str = ""
    micro_batch_ms: float = 0.0
    notes: tuple[str, ...] = ()
    """What its executor has to do without on this computer."""
    since_ms: int = 0
    load_due_ms: int | None = None
    """When it must have loaded its package; None while it does not load."""
    idle_since_ms: int = 0
    duty_permille: int = 1000
    not_before_ms: int = 0
    failed: bool = False
    """It was ended because it failed (did not come up, hung), not because it was not needed."""
    stale: bool = False
    """The computer has slept since it was started: its accelerator's context may be gone."""
    build: Build | None = None
    """What it builds, where it does not work on leases."""

    def loads(self, now_ms: int, load_ms: int) -> WorkerState:
        """As it is from now on: up, and loading a package that says how long this takes at full pace."""
        due_ms = now_ms + load_ms * 1000 // _load_permille(self.duty_permille) + LOAD_MARGIN_MS
        return msgspec.structs.replace(self, load_due_ms=due_ms)

    def paced(self, now_ms: int, duty_permille: int) -> WorkerState:
        """As it is at another pace: what is left of its time to load is stretched, or shrinks."""
        due_ms = self.load_due_ms
        if due_ms is not None:
            left_ms = max(0, due_ms - now_ms)
            due_ms = now_ms + left_ms * _load_permille(self.duty_permille) // _load_permille(duty_permille)
        return msgspec.structs.replace(self, duty_permille=duty_permille, load_due_ms=due_ms)

    def start_due_ms(self, start_timeout_ms: int) -> int:
        """Until when a worker that starts may take: for its start alone, then for its load."""
        return self.since_ms + start_timeout_ms if self.load_due_ms is None else self.load_due_ms


def _load_permille(duty_permille: int) -> int:
    return max(duty_permille, LOAD_SLOWEST_PERMILLE)


class Vacating(msgspec.Struct, frozen=True):
    """Giving the computer back: from the first sign to the worker idle and gone."""

    cause: str
    sign_ms: int
    idle_ms: int | None = None


class State(msgspec.Struct, frozen=True):
    """The whole state. `name` seeds what must differ between cars (identifiers, jitter) without randomness."""

    name: str
    policy: Policy
    now_ms: int
    gates: Gates
    vehicle: Vehicle = Vehicle()
    compute: ComputeSeen | None = None
    meter: Meter = Meter()
    heat: Heat = Heat()
    battery: Battery = Battery()
    wall: WallClock = WallClock()
    zone: Zone = UTC
    prices: Prices = Prices()
    stay: Stay = Stay()
    awake: Awake = Awake()
    demand_until_ms: int = 0
    demand_detail: str = ""
    owner: Owner = Owner()
    metered: bool | None = None
    update_pending: bool = False
    update_since_ms: int = 0
    """Since when an update waits, where one does."""
    self_test_problem: str = ""
    accelerator: Accelerator = SUPPOSED_READY
    store_problem: str = ""
    stopping: bool = False
    connected: bool = False
    offline_since_ms: int | None = None
    broker: str = ""
    link_detail: str = ""
    link_told: bool | None = None
    """Whether the link was up when the log was told of it last; None: never told."""
    link_told_ms: int = 0
    pace: Pace = Pace()
    traffic: Traffic = Traffic()
    worker: WorkerState = WorkerState()
    vacating: Vacating | None = None
    builds: Builds = Builds()
    lease: Lease | None = None
    outbox: tuple[Pending, ...] = ()
    asking: Asking | None = None
    ask_not_before_ms: int = 0
    asked: int = 0
    request_not_before_ms: int = 0
    """Before then no request goes, however often the link comes and goes."""
    unanswered: int = 0
    """Questions in a row that nobody answered: each makes the wait for the next longer."""
    fruitless: int = 0
    """Leases in a row that came to nothing (refused, at fault, too long): each doubles the wait for the next."""
    offer_not_before_ms: int = 0
    """Before then nothing of the outbox goes that was sent before."""
    send_not_before_ms: int = 0
    """Before then nothing of the outbox goes at all: the link took none."""
    uploading: tuple[JobKey, int] | None = None
    """The slice whose answers are under way to where its grant said."""
    upload_not_before_ms: int = 0
    """After one failed, before then none is begun, whosever it is."""
    transfers_paused: bool = False
    speeds: Speeds = Speeds()
    left_over: tuple[Lease, ...] = ()
    slices_started: int = 0
    slices_kept: int = 0
    slice_ms: int | None = None
    """How long the last slice took; None before the first."""
    power_limit_w: float | None = None
    """The power limit that the platform was asked to hold last."""
    kept: Kept | None = Kept()
    """What was written of the budgets last; None where that may have failed."""
    keep_due_ms: int = 0
    time_off: TimeOff | None = None
    """How long the agent was off is still to be told, by the wall clock."""
    plan_due_ms: int = FAR_MS
    """When a rule of the plan has something to do, if nothing happens until then."""
    looked_at: tuple[World, Policy] | None = None
    """What the gates looked at last."""

    @property
    def charging(self) -> bool:
        """The car says that it charges, and so is awake by itself."""
        return self.vehicle.word(CHARGING) is True

    @property
    def spent(self) -> Spent:
        """What the lease at work has drawn and cost so far; nothing where there is none. Negative prices earn."""
        lease, meter = self.lease, self.meter
        if lease is None:
            return Spent(0, 0)
        energy = max(0, round(meter.total_micro_wh - lease.energy_start_micro_wh))
        return Spent(energy, round(meter.cost_micro - lease.cost_start_micro))

    @property
    def due_ms(self) -> int:
        """Until then a tick changes nothing."""
        return min(self.gates.due_ms, self.plan_due_ms)

    @property
    def wakes_ms(self) -> int:
        """As `due_ms`, for a world in which no signal grows old: what a simulation may skip to."""
        return min(self.gates.look_ms, self.plan_due_ms)

    @property
    def have(self) -> tuple[JobKey, ...]:
        """What this car holds: the lease it works on and the hand-ins that await a verdict."""
        leases = (self.lease, *self.left_over)
        held = tuple(lease.key for lease in leases if lease is not None)
        return held + tuple(pending.key for pending in self.outbox if pending.key not in held)

    def jitter(self, salt: str) -> float:
        """A number in [0, 1) that differs between cars and calls, and is the same when the night is replayed."""
        return zlib.crc32(f"{self.name}:{self.asked}:{salt}".encode()) / 2**32


def initial(
    name: str,
    policy: Policy,
    now_ms: int,
    *,
    vehicle: Vehicle | None = None,
    zone: Zone = UTC,
    self_test_problem: str = "",
    accelerator: Accelerator = SUPPOSED_READY,
) -> State:
    """The state at start: nothing known, so everything shut. `name` is unique to this run of this unit.

    `vehicle` says which leaves this car has; `zone` is the policy's time zone as data; `self_test_problem` shuts the
    gate until a `SelfTested` opens it, and an `accelerator` that is not ready until an `AcceleratorSeen` does (a
    simulation, which has nothing to test or to survey, leaves both as they are).
    """
    return State(
        name=name,
        policy=policy,
        now_ms=now_ms,
        gates=shut(now_ms),
        vehicle=Vehicle() if vehicle is None else vehicle,
        zone=zone,
        offline_since_ms=now_ms,
        self_test_problem=self_test_problem,
        accelerator=accelerator,
    )


def resume(
    state: State,
    outbox: tuple[Pending, ...],
    left_over: tuple[Lease, ...],
    owner: Owner,
    kept: Kept | None = None,
) -> State:
    """The state at start with what an earlier run left.

    Hand-ins without a verdict, open leases, the owner's word, and what was spent of the budgets (None: never told of).
    """
    outbox = tuple(pending.left_behind() for pending in outbox)
    state = msgspec.structs.replace(state, outbox=outbox, left_over=left_over, owner=owner)
    return state if kept is None else with_kept(state, kept)
