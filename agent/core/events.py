"""What the core is told: its events, a tagged union of frozen values.

The shells turn the world into events and put them on one queue; `agent.core.machine.step` folds an event
into the state and answers with effects (`agent.core.effects`); what came of those returns as an event.
Nothing else passes between the core and the world, so a recording of events replays a night exactly.

Here is what the car, its computer, the owner and the disk say, and `EventType`, the union of all. What the fleet and
the way to it say is in `agent.core.fleet_events`, what is said of the accelerator and of engine plans in
`agent.core.accelerator_events`; both can be had from here as well.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.accelerator_events import (
    AcceleratorEvent,
    AcceleratorSeen,
    BuildProgress,
    BuildRefused,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlansMissing,
    PlanUnusable,
)
from agent.core.event import Event
from agent.core.fleet_events import (
    BytesMoved,
    CancelSeen,
    FleetEvent,
    GrantSeen,
    HandInNotSent,
    HandInUndelivered,
    LinkChanged,
    PaceSeen,
    SliceUploaded,
    TransferFailed,
    VerdictSeen,
)
from agent.core.model import HandInKind, JobKey, SliceOutcome
from agent.core.policy import Window

__all__ = [
    "AcceleratorSeen",
    "BuildProgress",
    "BuildRefused",
    "BytesMoved",
    "CancelSeen",
    "Event",
    "GrantSeen",
    "HandInNotSent",
    "HandInUndelivered",
    "LinkChanged",
    "PaceSeen",
    "PlanBuilt",
    "PlanMade",
    "PlanNotKept",
    "PlanUnusable",
    "PlansMissing",
    "SliceUploaded",
    "TransferFailed",
    "VerdictSeen",
]

SignalValue = float | bool | str
"""A VSS value; integers travel as floats, since a gate only ever compares them."""


class Quality(enum.StrEnum):
    """How far a sample may be believed. Everything but `GOOD` counts as 'the driver is here'."""

    GOOD = "good"
    UNKNOWN = "unknown"
    """The car says that it does not know (UNKNOWN, UNDEFINED), or the source has no value."""
    NOT_AVAILABLE = "not_available"
    """Signal not available (SNA): the sender has nothing to say."""
    INVALID = "invalid"
    """A value that the leaf cannot have: of another kind, not one of its allowed values, undecodable."""
    FAULT = "fault"
    """The sender knows that its sensor is broken."""
    NOT_A_NUMBER = "not_a_number"
    OUT_OF_RANGE = "out_of_range"


class Sample(msgspec.Struct, frozen=True, tag=True):
    """One VSS leaf as a source reported it; `value` is None unless `quality` is good.

    `group` names what makes it fresh again: leaves of one CAN message, or of one databroker, are heard together.
    `period_ms` is how often the group is sent, 0 where nobody says.
    """

    path: str
    value: SignalValue | None
    quality: Quality = Quality.GOOD
    group: str = ""
    period_ms: int = 0


class Tick(Event, frozen=True, tag=True):
    """Time has passed; sent a few times a second so that staleness and deadlines bite."""


class ComputerSlept(Event, frozen=True, tag=True):
    """The computer was suspended for so long, and is back: what an accelerator held may be gone."""

    slept_ms: int


class SignalsSeen(Event, frozen=True, tag=True):
    """A vehicle source received samples (one CAN frame, one databroker update)."""

    source: str
    samples: tuple[Sample, ...]


class SourceHeard(Event, frozen=True, tag=True):
    """These groups of a source were received again and said the same as before: their leaves are fresh.

    The cheap event that keeps age honest: nothing is decided on it; what is due is for the next tick. But what had
    grown too old before it came is found out first. A simulation that leaves repetitions out says so with `since_ms`:
    the groups were heard without a gap from then on. None: they were heard at `at_ms`, and nothing is said of before.
    """

    source: str
    groups: tuple[str, ...]
    since_ms: int | None = None


class SourceChanged(Event, frozen=True, tag=True):
    """A vehicle source came up, or went down and says why."""

    source: str
    alive: bool
    detail: str = ""


class LeavesOffered(Event, frozen=True, tag=True):
    """A source learned only now which leaves this car has (a databroker lists them once it is reached).

    `paths` are VSS 6.0 names, binding for the gates from now on; `absent` are leaves that the configuration says this
    car does not have.
    """

    source: str
    paths: tuple[str, ...]
    absent: tuple[str, ...] = ()


class ComputeSeen(Event, frozen=True, tag=True):
    """One reading of the inference computer; None means that there is no reading, which is not zero.

    `sensor` names where the power comes from; the error bars are what the sensors' makers promise, doubled where
    nobody promises anything. `throttled`: the platform itself holds the clocks down. `energy_mj`: what the sensor's own
    counter says was used since it began to count, where it has one; between two readings it misses nothing.
    `power_promised`: this kind of reader measures power, so that none is a fault.
    """

    die_c: float | None
    power_w: float | None
    sensor: str
    die_error_c: float = 1.0
    power_error_share: float = 0.05
    throttled: bool = False
    energy_mj: int | None = None
    since_ms: int | None = None
    """A simulation has left out readings like this one from then on; None where each is told."""
    power_promised: bool = False


class HostSeen(Event, frozen=True, tag=True):
    """What the computer's own system says, every few seconds.

    `wall_ms` is its wall clock (since 1970) at `at_ms`; `wall_error_ms` is the bound that the kernel's clock
    discipline gives, None while nobody keeps the clock. `metered` is None while nobody knows.
    """

    wall_ms: int
    wall_error_ms: int | None
    metered: bool | None = None
    update_pending: bool = False


class SelfTested(Event, frozen=True, tag=True):
    """The agent's own test of what it needs (keys, ledger, store, sensors); empty `problem` when all is well."""

    problem: str


class PriceSlot(msgspec.Struct, frozen=True, array_like=True):
    """The price of energy at the plug, in millionths of the currency per kWh, within [start, end) of wall time."""

    start_wall_ms: int
    end_wall_ms: int
    price_micro_per_kwh: int


class PricesSeen(Event, frozen=True, tag=True):
    """A price curve whose signature holds. It replaces an older one; after its expiry the calendar counts again."""

    issued_wall_ms: int
    expires_wall_ms: int
    slots: tuple[PriceSlot, ...]


class DemandSeen(Event, frozen=True, tag=True):
    """The grid asks for relief: a signed order to stop for `stop_for_ms` from now; 0 takes it back."""

    stop_for_ms: int
    detail: str = ""


class LeaseOpened(Event, frozen=True, tag=True):
    """The lease is durable and its input is here, whole and with the right digest."""

    key: JobKey


class LeaseRefused(Event, frozen=True, tag=True):
    """The lease cannot be started: its input or its package failed.

    A `replayed` grant is one whose nonce or token was used up before: nothing is owed for it. `transient`: nothing is
    wrong with the package or the input, the network or this computer failed; another car, or another time, may do.
    """

    key: JobKey
    detail: str
    replayed: bool = False
    transient: bool = False


class WorkerLoading(Event, frozen=True, tag=True):
    """The worker is up and was told to load its package, which says that this takes `load_ms` at most, at full pace."""

    pid: int
    load_ms: int


class WorkerReady(Event, frozen=True, tag=True):
    """The worker has loaded the package and its golden vectors came out right."""

    pid: int
    executor: str
    device: str
    package: str
    micro_batch_ms: float
    notes: tuple[str, ...] = ()
    """What its executor has to do without on this computer, a sentence each."""


class WorkerRefused(Event, frozen=True, tag=True):
    """The worker refused the package (digest, golden vector, model); it is on its way out."""

    package: str
    detail: str


class WorkerIdle(Event, frozen=True, tag=True):
    """The worker has stopped computing, as it was told to; its memory is about to be freed."""

    pid: int


class WorkerGone(Event, frozen=True, tag=True):
    """The worker process has ended and its memory is free."""

    pid: int
    expected: bool
    detail: str
    lost_accelerator: bool = False
    """It ended because its accelerator's context was gone (a suspend, a fault of the device)."""


class SliceStored(Event, frozen=True, tag=True):
    """A finished slice is on disk; its answers are `output_bytes` long."""

    key: JobKey
    outcome: SliceOutcome
    output_bytes: int


class SliceFailed(Event, frozen=True, tag=True):
    """A slice could not be computed."""

    key: JobKey
    index: int
    detail: str


class HandInStored(Event, frozen=True, tag=True):
    """The signed hand-in of a lease (result or yield) is in the outbox and its statement in the ledger.

    `statement_sha256` is empty for a yield of nothing, which has no statement. `referenced` are the slices whose
    answers the message only names by their digest; `missing`, those of them that have still to be uploaded: before
    that the message is not sent.
    """

    key: JobKey
    kind: HandInKind
    statement_sha256: str
    missing: tuple[int, ...] = ()
    referenced: tuple[int, ...] = ()


class HandInFailed(Event, frozen=True, tag=True):
    """A hand-in could not be made, for a reason that trying again would not change."""

    key: JobKey
    detail: str


class HandInSettled(Event, frozen=True, tag=True):
    """The verdict is recorded, and the outbox row gone."""

    key: JobKey


class Unwritten(enum.StrEnum):
    """Which step the disk refused; each is done again once it takes writes."""

    LEASE = "lease"
    SLICE = "slice"
    HAND_IN = "hand_in"
    VERDICT = "verdict"
    NOTE = "note"


class StoreFailed(Event, frozen=True, tag=True):
    """The disk refused a write (full, I/O error): nothing new may be earned until it takes one again.

    `key` and `index` name the lease and the slice that the step was about, where it was about one.
    """

    detail: str
    step: Unwritten
    key: JobKey | None = None
    index: int | None = None


class StoreRecovered(Event, frozen=True, tag=True):
    """The disk takes writes again."""


class Stopping(Event, frozen=True, tag=True):
    """The daemon was told to end: give back what is leased and end the worker."""


class OwnerMode(enum.StrEnum):
    """What the owner wants: work when the gates allow, work on and then stop, or no work."""

    AUTO = "auto"
    FINISH = "finish"
    PAUSED = "paused"


class OwnerSaid(Event, frozen=True, tag=True):
    """The owner's word. A pause ends at `until_ms` (CLOCK_BOOTTIME), else at `until_wall_ms`, else never by itself.

    After a reboot only the wall time is left of it, and that counts once the wall clock can be trusted.
    """

    mode: OwnerMode
    until_ms: int | None = None
    until_wall_ms: int | None = None


class OwnerSet(Event, frozen=True, tag=True):
    """The owner's standing wishes, in place of the policy's: when, for how much at least, and for what kind of work."""

    schedule: tuple[Window, ...]
    price_floor_micro_per_kwh: int
    workload_classes: tuple[str, ...]


class ConsentSeen(Event, frozen=True, tag=True):
    """The version of the terms that the owner agreed to; 0 when consent was never given or was withdrawn."""

    version: int


EventType = (
    Tick
    | ComputerSlept
    | SignalsSeen
    | SourceHeard
    | SourceChanged
    | LeavesOffered
    | ComputeSeen
    | HostSeen
    | SelfTested
    | PricesSeen
    | DemandSeen
    | FleetEvent
    | AcceleratorEvent
    | LeaseOpened
    | LeaseRefused
    | WorkerLoading
    | WorkerReady
    | WorkerRefused
    | WorkerIdle
    | WorkerGone
    | SliceStored
    | SliceFailed
    | HandInStored
    | HandInFailed
    | HandInSettled
    | StoreFailed
    | StoreRecovered
    | OwnerSaid
    | OwnerSet
    | ConsentSeen
    | Stopping
)
