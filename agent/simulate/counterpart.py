"""The other side of a rehearsal: a dispatcher that always has work, a disk that always writes, an obedient worker.

It answers the core's effects with the events that the real shells would send, each after a stated time. What is
supposed of it is in `Supposed`, and printed with every report: a rehearsal judges a policy and not a fleet, so there is
always work, every verdict is 'settled', every engine plan is there, and nothing here fails. As a good dispatcher does,
it grants what fits into the time that the car expects to have, and three times the time that it takes, so no lease
needs renewal or an upload.
"""

from __future__ import annotations

import heapq
import math

import msgspec

from agent.core.effects import (
    EffectType,
    HandIn,
    OpenLease,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    SettleHandIn,
    StartWorker,
    StopWorker,
)
from agent.core.events import (
    EventType,
    GrantSeen,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LinkChanged,
    SliceStored,
    VerdictSeen,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
)
from agent.core.model import Grant, JobKey, Outlook, SliceOutcome, Verdict
from agent.core.policy import Policy
from agent.core.world import FAR_MS
from agent.simulate.computer import Computer

ROUND_TRIP_MS = 200
"""A question to the dispatcher and its answer."""
WRITE_MS = 20
FREE_MS = 40
"""From no more work running to the worker's memory free."""
KILL_MS = 5
SLICES_PER_LEASE = 16
"""As many as fit into one hand-in of 16 KiB."""
SLICE_BYTES = 100
LEASE_TTL_MS = 900_000
TTL_SHARE = 3
"""A lease lasts so many times as long as its work, and `LEASE_TTL_MS` at least."""
UNKNOWN_S = 900
"""So much work is granted where the car does not know how long it has."""
DIGEST = "0" * 64


class Supposed(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal supposes of the fleet and the worker.

    `slice_s` is the time of one slice at full pace, `slice_price_micro` what it is paid, in millionths of the currency.
    `work_w` is what the computer draws at full work; `load_s` is how long a worker takes to come up.
    """

    slice_s: float = 5.0
    slice_price_micro: int = 100
    work_w: float = 60.0
    load_s: float = 8.0
    micro_batch_ms: float = 20.0


class Counterpart:
    """Takes effects, and has answers that come due. All times are the rehearsal's."""

    def __init__(self, policy: Policy, supposed: Supposed, computer: Computer) -> None:
        self._policy, self._supposed, self._computer = policy, supposed, computer
        self._answers: list[tuple[int, int, EventType]] = []
        self._told = 0
        self._granted = 0
        self._workers = 0
        self._connected = False
        self._slices: dict[JobKey, int] = {}
        self._running: RunSlice | None = None
        self._left_ms = 0.0
        """Of the slice at work, at full pace, as of `_paced_ms`."""
        self._paced_ms = 0
        self._duty = 1.0

    # --- time ------------------------------------------------------------------------------------------------------

    @property
    def due_ms(self) -> int | None:
        """When the next answer comes."""
        due = [self._answers[0][0]] if self._answers else []
        if self._running is not None:
            due.append(self._slice_ends_ms())
        return min(due, default=None)

    def answer(self, now_ms: int) -> EventType | None:
        """The next answer that is due by now, if one is."""
        if self._running is not None and self._slice_ends_ms() <= now_ms:
            return self._slice_done(now_ms)
        if self._answers and self._answers[0][0] <= now_ms:
            return heapq.heappop(self._answers)[2]
        return None

    def connect(self, now_ms: int, *, connected: bool) -> LinkChanged:
        """The network comes or goes; what is said while it is down is lost."""
        self._connected = connected
        detail = "" if connected else "the trace says so"
        return LinkChanged(at_ms=now_ms, connected=connected, broker="rehearsal", detail=detail)

    # --- effects ---------------------------------------------------------------------------------------------------

    def take(self, effect: EffectType, now_ms: int) -> None:
        """Begin what the core asks for."""
        match effect:
            case SendRequest(rid=rid, outlook=outlook) if self._connected:
                at_ms = now_ms + ROUND_TRIP_MS
                self._tell(GrantSeen(at_ms=at_ms, rid=rid, grant=self._grant(outlook), retry_ms=0))
            case SendHandIn(key=key, credit=credit, outlook=outlook) if self._connected:
                following = self._grant(outlook) if credit else None
                self._tell(self._verdict(key, now_ms + ROUND_TRIP_MS, following))
            case OpenLease(grant=grant):
                self._slices[grant.key] = 0
                self._tell(LeaseOpened(at_ms=now_ms, key=grant.key))
            case HandIn(grant=grant, kind=kind):
                done = self._slices.get(grant.key, 0)
                digest = DIGEST if done else ""
                at_ms = now_ms + WRITE_MS
                self._tell(HandInStored(at_ms=at_ms, key=grant.key, kind=kind, statement_sha256=digest))
            case SettleHandIn(key=key):
                self._slices.pop(key, None)
                self._tell(HandInSettled(at_ms=now_ms + WRITE_MS, key=key))
            case StartWorker():
                self._start(now_ms)
            case RunSlice():
                self._running, self._left_ms, self._paced_ms = effect, self._supposed.slice_s * 1000, now_ms
                self._computer.work(self._duty, now_ms)
            case SetPace(duty_permille=duty_permille):
                self._pace(duty_permille / 1000, now_ms)
            case StopWorker(budget_ms=budget_ms):
                self._stop(budget_ms, now_ms)
            case _:
                pass

    def _tell(self, event: EventType) -> None:
        self._told += 1
        heapq.heappush(self._answers, (event.at_ms, self._told, event))

    def _grant(self, outlook: Outlook) -> Grant:
        self._granted += 1
        classes = self._policy.workload_classes
        slice_s = self._supposed.slice_s
        slices = max(1, min(SLICES_PER_LEASE, int((outlook.open_for_s or UNKNOWN_S) / slice_s)))
        expected_ms = round(slices * slice_s * 1000)
        return Grant(
            job=f"job{self._granted}",
            epoch=1,
            nonce=f"{self._granted:032x}",
            customer="rehearsal",
            package="rehearsal",
            package_sha256=DIGEST,
            input_url="",
            input_sha256=DIGEST,
            input_bytes=0,
            items=slices,
            slice_items=1,
            slices=tuple(range(slices)),
            ttl_ms=max(LEASE_TTL_MS, TTL_SHARE * expected_ms),
            price_micro_per_item=self._supposed.slice_price_micro,
            currency=self._policy.currency,
            workload_class=classes[0] if classes else "",
            expected_ms=expected_ms,
        )

    def _verdict(self, key: JobKey, at_ms: int, following: Grant | None) -> VerdictSeen:
        done = self._slices.get(key, 0)
        return VerdictSeen(
            at_ms=at_ms,
            key=key,
            verdict=Verdict.SETTLED,
            reason="",
            paid_micro=done * self._supposed.slice_price_micro,
            statement_sha256=DIGEST if done else "",
            retry_ms=0,
            envelope=b"",
            next_grant=following,
        )

    # --- the worker ------------------------------------------------------------------------------------------------

    def _start(self, now_ms: int) -> None:
        self._workers += 1
        self._duty = 1.0
        self._tell(
            WorkerReady(
                at_ms=now_ms + round(self._supposed.load_s * 1000),
                pid=self._workers,
                executor="rehearsal",
                device="rehearsal",
                package="rehearsal",
                micro_batch_ms=self._supposed.micro_batch_ms,
            )
        )

    def _pace(self, duty: float, now_ms: int) -> None:
        self._progress(now_ms)
        self._duty = duty
        if self._running is not None:
            self._computer.work(duty, now_ms)

    def _stop(self, budget_ms: int, now_ms: int) -> None:
        """The micro-batch in flight is drained within the budget, or killed; then the memory is freed."""
        idle_ms = now_ms + KILL_MS
        if self._running is not None and budget_ms > 0:
            idle_ms = now_ms + min(round(self._supposed.micro_batch_ms), budget_ms)
        self._progress(now_ms)
        self._running = None
        self._computer.work(0.0, now_ms)
        self._answers = [one for one in self._answers if not isinstance(one[2], WorkerReady)]
        heapq.heapify(self._answers)
        self._tell(WorkerIdle(at_ms=idle_ms, pid=self._workers))
        self._tell(WorkerGone(at_ms=idle_ms + FREE_MS, pid=self._workers, expected=True, detail=""))

    def _progress(self, now_ms: int) -> None:
        if self._running is not None:
            self._left_ms -= (now_ms - self._paced_ms) * self._duty
        self._paced_ms = now_ms

    def _slice_ends_ms(self) -> int:
        if self._duty <= 0:
            return FAR_MS
        return self._paced_ms + max(0, math.ceil(self._left_ms / self._duty))

    def _slice_done(self, now_ms: int) -> EventType | None:
        self._progress(now_ms)
        slice_, self._running = self._running, None
        self._computer.work(0.0, now_ms)
        assert slice_ is not None
        self._slices[slice_.key] = self._slices.get(slice_.key, 0) + 1
        compute_ms = round(self._supposed.slice_s * 1000)
        outcome = SliceOutcome(slice_.index, slice_.last - slice_.first, 0, DIGEST, DIGEST, compute_ms)
        return SliceStored(at_ms=now_ms, key=slice_.key, outcome=outcome, output_bytes=SLICE_BYTES)
