"""What the core asks of the world: its effects, a tagged union of frozen values.

The shells carry them out, and what came of them returns as an event (`agent.core.events`).
"""

from __future__ import annotations

import msgspec

from agent.core.model import Grant, HandInKind, JobKey, Kept, LeaseFacts, Outlook, Verdict, YieldReason


class Effect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the shells are asked to do."""


class SendRequest(Effect, frozen=True, tag=True):
    """Ask the dispatcher for work."""

    rid: str
    have: tuple[JobKey, ...]
    outlook: Outlook = Outlook()


class SendRenewal(Effect, frozen=True, tag=True):
    """Ask for more time for the lease at work, of which `done` slices are finished; a grant answers, or a cancel."""

    rid: str
    key: JobKey
    done: int
    have: tuple[JobKey, ...]


class OpenLease(Effect, frozen=True, tag=True):
    """Make the lease durable and fetch its input; answered by LeaseOpened or LeaseRefused."""

    grant: Grant


class KeepGrant(Effect, frozen=True, tag=True):
    """Remember the grant of the lease at work as it was renewed: its answers go elsewhere now, after a restart too."""

    grant: Grant


class StartWorker(Effect, frozen=True, tag=True):
    """Start a worker for the lease's customer and package."""

    grant: Grant


class StartBuild(Effect, frozen=True, tag=True):
    """Start a worker that builds the engine plan of a package; PlanBuilt or BuildRefused, then WorkerGone."""

    package_sha256: str


class RunSlice(Effect, frozen=True, tag=True):
    """Compute items [first, last) of the lease's input."""

    key: JobKey
    index: int
    first: int
    last: int


class SetPace(Effect, frozen=True, tag=True):
    """Let the worker compute for `duty_permille` thousandths of the time."""

    duty_permille: int


class SetPowerLimit(Effect, frozen=True, tag=True):
    """Hold the computer to `limit_w` by its own means (devfreq, NVML) where the platform grants them.

    Pacing holds it to the same limit anyway; the platform's means act between two micro-batches too.
    """

    limit_w: float


class KeepAwake(Effect, frozen=True, tag=True):
    """Ask the platform to stay awake for `for_ms` from now; 0 lets go. Only sent where the policy allows it."""

    for_ms: int


class StopWorker(Effect, frozen=True, tag=True):
    """Drain what is in flight, end the worker, and kill it when it outlasts `budget_ms` (0: kill at once)."""

    budget_ms: int
    why: str


class HandIn(Effect, frozen=True, tag=True):
    """Sign what the lease finished and put it in the outbox; answered by HandInStored, HandInFailed or StoreFailed.

    `uploaded` are the slices whose answers have been brought to where the grant said; they go by digest.
    """

    grant: Grant
    kind: HandInKind
    why: YieldReason | None
    detail: str
    facts: LeaseFacts
    uploaded: tuple[int, ...] = ()


class SendHandIn(Effect, frozen=True, tag=True):
    """Publish a hand-in from the outbox."""

    key: JobKey
    credit: int
    have: tuple[JobKey, ...]
    outlook: Outlook = Outlook()


class UploadSlice(Effect, frozen=True, tag=True):
    """Bring a stored slice's answers to where the grant says; answered by SliceUploaded or TransferFailed."""

    key: JobKey
    index: int
    url: str
    token: str


class PauseTransfers(Effect, frozen=True, tag=True):
    """Stop moving bulk data at once: what is under way fails (LeaseRefused, TransferFailed) and goes on from there."""


class SettleHandIn(Effect, frozen=True, tag=True):
    """Record the verdict and drop the hand-in from the outbox, in one transaction; answered by HandInSettled."""

    key: JobKey
    verdict: Verdict
    reason: str
    paid_micro: int
    envelope: bytes


class EndPause(Effect, frozen=True, tag=True):
    """The owner's pause that was to end then has run out: forget it, unless the owner has said something since."""

    until_ms: int | None
    until_wall_ms: int | None


class KeepBudgets(Effect, frozen=True, tag=True):
    """Remember what was spent of the budgets, so that a restart does not hand them out again."""

    kept: Kept


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
    | SendRenewal
    | OpenLease
    | KeepGrant
    | StartWorker
    | StartBuild
    | RunSlice
    | SetPace
    | SetPowerLimit
    | KeepAwake
    | StopWorker
    | HandIn
    | SendHandIn
    | UploadSlice
    | PauseTransfers
    | SettleHandIn
    | EndPause
    | KeepBudgets
    | RecordVacate
    | Report
)
