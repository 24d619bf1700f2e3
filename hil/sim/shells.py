"""The shells' answers in virtual time: worker, disk and link do what the core asked, each with its delays and faults.

They keep the contracts of the real shells and nothing more: a stopped worker says when it is idle and when it is gone,
a disk that refuses a write says which, an order to a worker that has just died is lost. The daemon's `hands` and
`station` are the real thing; what they promise their core is repeated here.
"""

from __future__ import annotations

import random
from collections.abc import Callable

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
    LeaseRefused,
    LinkChanged,
    SliceFailed,
    SliceStored,
    StoreFailed,
    StoreRecovered,
    Unwritten,
    VerdictSeen,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
    WorkerRefused,
)
from agent.core.model import Grant, HandInKind, JobKey, SliceOutcome, Verdict
from hil.sim.clockwork import Clockwork
from hil.sim.dispatcher import Dispatcher

SHA256 = "5" * 64
KILL_MS = 20
"""From the kill to the end of the process."""
FREE_MS = 120
"""From the last micro-batch to the end of the process, its memory freed."""
Tell = Callable[[EventType], None]


class Troubles(msgspec.Struct):
    """What may go wrong with the computer's side, as chances per occasion, and what is wrong now."""

    crash: float = 0.0
    hang: float = 0.0
    slow_start: float = 0.0
    refuse: float = 0.0
    slice_fails: float = 0.0
    lose: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    disk_full: bool = False
    drain_hangs: bool = False
    disobeys: float = 0.0
    """The share of its pace by which the computer draws more than it was told."""


class Slice(msgspec.Struct):
    """The slice in the worker's hands: full-rate work left (ms) as of `since_ms`."""

    order: RunSlice
    left_ms: float
    since_ms: int
    hangs: bool = False


class Shells:
    """Carries out effects and tells what came of them. `moved` is called when the computer's power changes."""

    def __init__(
        self, clockwork: Clockwork, chance: random.Random, tell: Tell, moved: Callable[[], None], slice_ms: int
    ) -> None:
        self._clock, self._chance, self._tell, self._moved = clockwork, chance, tell, moved
        self.dispatcher = Dispatcher(chance)
        self.troubles = Troubles()
        self.connected = False
        self._slice_ms = slice_ms
        self._life = 0
        """Counts workers: what was asked of an earlier one does not touch the next."""
        self._alive = False
        self._micro_batch_ms = 15.0
        self._duty = 1.0
        self._slice: Slice | None = None
        self._stopping = False
        self._disk: dict[JobKey, list[int]] = {}
        self._outbox: dict[JobKey, tuple[HandInKind, str]] = {}

    @property
    def load(self) -> float:
        """The share of full power above idle that the computer draws now."""
        if self._slice is None:
            return 0.0
        return min(1.0, self._duty * (1 + self.troubles.disobeys))

    @property
    def busy(self) -> bool:
        """There is a worker."""
        return self._alive

    def perform(self, effect: EffectType) -> None:
        """Begin what the core asked for."""
        match effect:
            case StartWorker():
                self._start(effect.grant)
            case RunSlice():
                self._run(effect)
            case SetPace(duty_permille=duty):
                self._pace(duty / 1000)
            case StopWorker():
                self._stop(effect.budget_ms)
            case SendRequest():
                self._request(effect)
            case OpenLease(grant=grant):
                self._clock.after(self._chance.uniform(100, 1_500), lambda: self._opened(grant))
            case HandIn():
                self._clock.after(self._chance.uniform(10, 80), lambda: self._handed_in(effect))
            case SendHandIn():
                self._send(effect)
            case SettleHandIn():
                self._clock.after(self._chance.uniform(5, 50), lambda: self._settled(effect))
            case _:
                pass

    # --- the link ----------------------------------------------------------------------------------------------

    def link(self, *, connected: bool) -> None:
        """The network comes or goes."""
        if connected is not self.connected:
            self.connected = connected
            detail = "" if connected else "the network is gone"
            self._tell(LinkChanged(at_ms=self._clock.now_ms, connected=connected, broker="b:1", detail=detail))

    def _request(self, effect: SendRequest) -> None:
        if self._lost():
            return
        grant, retry_ms = self.dispatcher.grant(self._clock.now_ms, effect.have)
        self._deliver(lambda: GrantSeen(at_ms=self._clock.now_ms, rid=effect.rid, grant=grant, retry_ms=retry_ms))

    def _send(self, effect: SendHandIn) -> None:
        if self._lost() or effect.key not in self._outbox:
            return
        kind, sha256 = self._outbox[effect.key]
        verdict = self.dispatcher.judge(effect.key, kind, self._clock.now_ms)
        following: Grant | None = None
        retry_ms = 0
        if effect.credit:
            following, retry_ms = self.dispatcher.grant(self._clock.now_ms, effect.have)
        self._deliver(
            lambda: VerdictSeen(
                at_ms=self._clock.now_ms,
                key=effect.key,
                verdict=verdict,
                reason="",
                paid_micro=100 if verdict is Verdict.SETTLED else 0,
                statement_sha256=sha256,
                retry_ms=retry_ms,
                envelope=b"",
                next_grant=following,
            )
        )

    def _lost(self) -> bool:
        return not self.connected or self._chance.random() < self.troubles.lose

    def _deliver(self, event: Callable[[], EventType]) -> None:
        """After the network's time; now and then late or twice, and not at all where the link is gone by then."""

        def arrive() -> None:
            if self.connected:
                self._tell(event())

        chance, troubles = self._chance, self.troubles
        delay_ms = chance.uniform(20, 300)
        if chance.random() < troubles.late:
            delay_ms = chance.uniform(2_000, 1_200_000)
        self._clock.after(delay_ms, arrive)
        if chance.random() < troubles.duplicate:
            self._clock.after(delay_ms + chance.uniform(1, 60_000), arrive)

    # --- the worker --------------------------------------------------------------------------------------------

    def _start(self, grant: Grant) -> None:
        self._life += 1
        self._alive, self._stopping, self._slice, self._duty = True, False, None, 1.0
        life, chance = self._life, self._chance
        self._micro_batch_ms = chance.choice((8.0, 15.0, 15.0, 20.0, 80.0))
        if chance.random() < self.troubles.slow_start:
            return
        if chance.random() < self.troubles.refuse:
            self._clock.after(1_000, lambda: self._refused(life, grant))
            return
        self._clock.after(chance.uniform(2_000, 8_000), lambda: self._ready(life))

    def _ready(self, life: int) -> None:
        if life != self._life or self._stopping or not self._alive:
            return
        self._tell(
            WorkerReady(
                at_ms=self._clock.now_ms,
                pid=life,
                executor="tensorrt",
                device="orin",
                package="ocr",
                micro_batch_ms=self._micro_batch_ms,
            )
        )

    def _refused(self, life: int, grant: Grant) -> None:
        if life == self._life and self._alive:
            self._tell(WorkerRefused(at_ms=self._clock.now_ms, package=grant.package, detail="golden vector"))
            self._gone(life, expected=True, detail="refused")

    def _run(self, order: RunSlice) -> None:
        if not self._alive:
            return  # it has just died: WorkerGone is on its way
        chance, troubles = self._chance, self.troubles
        self._slice = Slice(order, self._slice_ms * chance.uniform(0.7, 1.3), self._clock.now_ms)
        self._slice.hangs = chance.random() < troubles.hang
        life = self._life
        if chance.random() < troubles.crash:
            self._clock.after(chance.uniform(100, 30_000), lambda: self._gone(life, expected=False, detail="signal 11"))
        self._moved()
        self._plan_end()

    def _pace(self, duty: float) -> None:
        running = self._slice
        if running is not None:
            running.left_ms -= (self._clock.now_ms - running.since_ms) * self._duty
            running.since_ms = self._clock.now_ms
        self._duty = duty
        if running is not None:
            self._moved()
            self._plan_end()

    def _plan_end(self) -> None:
        running, duty = self._slice, self._duty
        if running is None or running.hangs or not duty:
            return
        mark = (running, running.since_ms)
        self._clock.after(max(0.0, running.left_ms) / duty, lambda: self._computed(*mark))

    def _computed(self, running: Slice, since_ms: int) -> None:
        """The slice is computed, if its pace has not changed since and nobody stopped it; then it goes to the disk."""
        if self._slice is not running or running.since_ms != since_ms or self._stopping:
            return
        self._slice = None
        self._moved()
        order = running.order
        if self._chance.random() < self.troubles.slice_fails:
            self._tell(SliceFailed(at_ms=self._clock.now_ms, key=order.key, index=order.index, detail="out of memory"))
            return
        self._clock.after(self._chance.uniform(5, 40), lambda: self._stored(order))

    def _stored(self, order: RunSlice) -> None:
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.SLICE, order.key, order.index)
            return
        self._disk.setdefault(order.key, []).append(order.index)
        outcome = SliceOutcome(order.index, order.last - order.first, 0, SHA256, SHA256, 1_000)
        self._tell(SliceStored(at_ms=self._clock.now_ms, key=order.key, outcome=outcome, output_bytes=200))

    def _stop(self, budget_ms: int) -> None:
        if not self._alive or self._stopping:
            return
        self._stopping = True
        life = self._life
        drains = self._slice is None or not (self.troubles.drain_hangs or self._slice.hangs)
        if budget_ms and drains and self._micro_batch_ms <= budget_ms:
            self._clock.after(self._chance.uniform(0, self._micro_batch_ms), lambda: self._idle(life))
            return
        self._clock.after(budget_ms + KILL_MS, lambda: self._gone(life, expected=True, detail="killed"))

    def _idle(self, life: int) -> None:
        if life != self._life or not self._alive:
            return
        self._slice = None
        self._moved()
        self._tell(WorkerIdle(at_ms=self._clock.now_ms, pid=life))
        self._clock.after(self._chance.uniform(30, FREE_MS), lambda: self._gone(life, expected=True, detail=""))

    def _gone(self, life: int, *, expected: bool, detail: str) -> None:
        if life != self._life or not self._alive:
            return
        self._alive, self._slice = False, None
        expected = expected or self._stopping
        self._moved()
        self._tell(WorkerGone(at_ms=self._clock.now_ms, pid=life, expected=expected, detail=detail))

    # --- the disk ----------------------------------------------------------------------------------------------

    def disk(self, *, full: bool) -> None:
        """The disk fills up, or takes writes again; the real shell finds that out by trying every two seconds."""
        if self.troubles.disk_full and not full:
            self._clock.after(1_000, lambda: self._tell(StoreRecovered(at_ms=self._clock.now_ms)))
        self.troubles.disk_full = full

    def _refuse_write(self, step: Unwritten, key: JobKey, index: int | None = None) -> None:
        detail = "No space left on device"
        self._tell(StoreFailed(at_ms=self._clock.now_ms, detail=detail, step=step, key=key, index=index))

    def _opened(self, grant: Grant) -> None:
        now_ms, key = self._clock.now_ms, grant.key
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.LEASE, key)
        elif self._chance.random() < self.troubles.refuse:
            self._tell(LeaseRefused(at_ms=now_ms, key=key, detail="the input's digest is wrong"))
        else:
            self._disk.setdefault(key, [])
            self._tell(LeaseOpened(at_ms=now_ms, key=key))

    def _handed_in(self, effect: HandIn) -> None:
        key = effect.grant.key
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.HAND_IN, key)
            return
        kind = effect.kind
        sha256 = SHA256 if self._disk.pop(key, []) else ""
        self._outbox[key] = (kind, sha256)
        self._tell(HandInStored(at_ms=self._clock.now_ms, key=key, kind=kind, statement_sha256=sha256))

    def _settled(self, effect: SettleHandIn) -> None:
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.VERDICT, effect.key)
            return
        self._outbox.pop(effect.key, None)
        self._tell(HandInSettled(at_ms=self._clock.now_ms, key=effect.key))
