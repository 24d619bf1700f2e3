"""What the core is told (events) and what it asks for (effects): two tagged unions of frozen values.

The shells turn the world into events and put them on one queue; `agent.core.machine.step` folds an event
into the state and answers with effects; the shells carry those out, and what came of them returns as an event.
Nothing else passes between the core and the world, so a recording of events replays a night exactly.

Every event carries `at_ms`, the CLOCK_BOOTTIME in milliseconds at which the shell learned of it: boot time goes
on counting while the car sleeps, where CLOCK_MONOTONIC would lose those hours.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, SliceOutcome, Verdict, YieldReason

SignalValue = float | bool | str
"""A VSS value; integers travel as floats, since a gate only ever compares them."""


class Quality(enum.StrEnum):
    """How far a sample may be believed. Everything but `GOOD` counts as 'the driver is here'."""

    GOOD = "good"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    OUT_OF_RANGE = "out_of_range"


class Sample(msgspec.Struct, frozen=True, tag=True):
    """One VSS leaf as a source reported it; `value` is None unless `quality` is good."""

    path: str
    value: SignalValue | None
    quality: Quality = Quality.GOOD


# --- events: what the world tells the core --------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What every event has: when this computer learned of it."""

    at_ms: int


class Tick(Event, frozen=True, tag=True):
    """Time has passed; sent a few times a second so that staleness and deadlines bite."""


class SignalsSeen(Event, frozen=True, tag=True):
    """A vehicle source received samples (one CAN frame, one databroker update)."""

    source: str
    samples: tuple[Sample, ...]


class SourceChanged(Event, frozen=True, tag=True):
    """A vehicle source came up, or went down and says why."""

    source: str
    alive: bool
    detail: str = ""


class ComputeSeen(Event, frozen=True, tag=True):
    """One reading of the inference computer; None means that there is no reading, which is not zero."""

    die_c: float | None
    power_w: float | None
    sensor: str


class LinkChanged(Event, frozen=True, tag=True):
    """The MQTT link came up or went down."""

    connected: bool
    broker: str
    detail: str = ""


class GrantSeen(Event, frozen=True, tag=True):
    """A grant whose signature holds and which names this unit; `grant` is None when there is no work now."""

    rid: str
    grant: Grant | None
    retry_ms: int


class VerdictSeen(Event, frozen=True, tag=True):
    """The dispatcher's signed word on a hand-in, with the next grant if it had one."""

    key: JobKey
    verdict: Verdict
    reason: str
    paid_micro: int
    statement_sha256: str
    retry_ms: int
    envelope: bytes
    next_grant: Grant | None = None


class LeaseOpened(Event, frozen=True, tag=True):
    """The lease is durable and its input is here, whole and with the right digest."""

    key: JobKey


class LeaseRefused(Event, frozen=True, tag=True):
    """The lease cannot be started: its input or its package failed.

    A `replayed` grant is one whose nonce or token was used up before: nothing is owed for it.
    """

    key: JobKey
    detail: str
    replayed: bool = False


class WorkerReady(Event, frozen=True, tag=True):
    """The worker has loaded the package and its golden vectors came out right."""

    pid: int
    executor: str
    device: str
    package: str
    micro_batch_ms: float


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

    `statement_sha256` is empty for a yield of nothing, which has no statement.
    """

    key: JobKey
    kind: HandInKind
    statement_sha256: str


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


class OwnerSaid(Event, frozen=True, tag=True):
    """The owner paused or resumed the computer's work."""

    paused: bool


EventType = (
    Tick
    | SignalsSeen
    | SourceChanged
    | ComputeSeen
    | LinkChanged
    | GrantSeen
    | VerdictSeen
    | LeaseOpened
    | LeaseRefused
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
    | Stopping
)


# --- effects: what the core asks of the world -------------------------------------------------------------------


class Effect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the shells are asked to do."""


class SendRequest(Effect, frozen=True, tag=True):
    """Ask the dispatcher for work."""

    rid: str
    have: tuple[JobKey, ...]


class OpenLease(Effect, frozen=True, tag=True):
    """Make the lease durable and fetch its input; answered by LeaseOpened or LeaseRefused."""

    grant: Grant


class StartWorker(Effect, frozen=True, tag=True):
    """Start a worker for the lease's customer and package."""

    grant: Grant


class RunSlice(Effect, frozen=True, tag=True):
    """Compute items [first, last) of the lease's input."""

    key: JobKey
    index: int
    first: int
    last: int


class SetPace(Effect, frozen=True, tag=True):
    """Let the worker compute for `duty_permille` thousandths of the time."""

    duty_permille: int


class StopWorker(Effect, frozen=True, tag=True):
    """Drain what is in flight, end the worker, and kill it when it outlasts `budget_ms` (0: kill at once)."""

    budget_ms: int
    why: str


class HandIn(Effect, frozen=True, tag=True):
    """Sign what the lease finished and put it in the outbox; answered by HandInStored, HandInFailed or StoreFailed."""

    grant: Grant
    kind: HandInKind
    why: YieldReason | None
    detail: str
    facts: LeaseFacts


class SendHandIn(Effect, frozen=True, tag=True):
    """Publish a hand-in from the outbox."""

    key: JobKey
    credit: int
    have: tuple[JobKey, ...]


class SettleHandIn(Effect, frozen=True, tag=True):
    """Record the verdict and drop the hand-in from the outbox, in one transaction; answered by HandInSettled."""

    key: JobKey
    verdict: Verdict
    reason: str
    paid_micro: int
    envelope: bytes


class RecordVacate(Effect, frozen=True, tag=True):
    """Note how long it took to give the computer back, from the sign of the driver."""

    cause: str
    idle_ms: int
    gone_ms: int


class Report(Effect, frozen=True, tag=True):
    """Log one event of the life of the agent; the name is a stable identifier."""

    name: str
    fields: dict[str, str | int | float | bool]


EffectType = (
    SendRequest
    | OpenLease
    | StartWorker
    | RunSlice
    | SetPace
    | StopWorker
    | HandIn
    | SendHandIn
    | SettleHandIn
    | RecordVacate
    | Report
)
