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
    PauseTransfers,
    RunSlice,
    SendHandIn,
    SendRenewal,
    SendRequest,
    SetPace,
    SettleHandIn,
    StartBuild,
    StartWorker,
    StopWorker,
    UploadSlice,
)
from agent.core.events import (
    BuildProgress,
    BuildRefused,
    BytesMoved,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    SliceFailed,
    SliceStored,
    StoreFailed,
    StoreRecovered,
    Unwritten,
    WorkerGone,
    WorkerIdle,
    WorkerReady,
    WorkerRefused,
)
from agent.core.model import Grant, JobKey, SliceOutcome
from hil.sim.clockwork import Clockwork
from hil.sim.uplink import BULKY_BYTES, Tell, Troubles, Uplink

SHA256 = "5" * 64
KILL_MS = 20
"""From the kill to the end of the process."""
FREE_MS = 120
"""From the last micro-batch to the end of the process, its memory freed."""
SMALL_BYTES = 200
INLINE_SLICES = 4
"""A slice's answers are small, or bulky where the grant says where such go: then only so many are in the message."""


PLAN_BYTES = 20_000_000
KEEP_MS = 2_000
"""From the end of a builder to its plan on the disk."""
BUILD_MS = (20_000, 600_000)
"""How long building a plan takes at full pace."""


class Slice(msgspec.Struct):
    """What is in the worker's hands, a slice or a build: full-rate work left (ms) as of `since_ms`, of `work_ms`."""

    order: RunSlice | StartBuild
    work_ms: float
    left_ms: float
    since_ms: int
    hangs: bool = False


class Shells:
    """Carries out effects and tells what came of them. `moved` is called when the computer's power changes."""

    def __init__(
        self, clockwork: Clockwork, chance: random.Random, tell: Tell, moved: Callable[[], None], slice_ms: int
    ) -> None:
        self._clock, self._chance, self._tell, self._moved = clockwork, chance, tell, moved
        self.troubles = Troubles()
        self.uplink = Uplink(clockwork, chance, tell, lambda: self.troubles, slice_ms)
        self._slice_ms = slice_ms
        self._life = 0
        """Counts workers: what was asked of an earlier one does not touch the next."""
        self._alive = False
        self._micro_batch_ms = 15.0
        self._duty = 1.0
        self._slice: Slice | None = None
        self._stopping = False
        self._disk: dict[JobKey, list[int]] = {}
        self._bulky: set[JobKey] = set()

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

    def perform(self, effect: EffectType) -> None:  # noqa: C901 - one arm an effect
        """Begin what the core asked for."""
        match effect:
            case StartWorker():
                self._start(effect.grant)
            case StartBuild():
                self._build(effect)
            case RunSlice():
                self._run(effect)
            case SetPace(duty_permille=duty):
                self._pace(duty / 1000)
            case StopWorker():
                self._stop(effect.budget_ms)
            case SendRequest() | SendRenewal() | SendHandIn() | UploadSlice():
                self.uplink.send(effect)
            case PauseTransfers():
                self.uplink.pause()
            case OpenLease(grant=grant):
                self.uplink.fetching = grant
                self._clock.after(self._chance.uniform(100, 1_500), lambda: self._opened(grant))
            case HandIn():
                self._clock.after(self._chance.uniform(10, 80), lambda: self._handed_in(effect))
            case SettleHandIn():
                self._clock.after(self._chance.uniform(5, 50), lambda: self._settled(effect))
            case _:
                pass

    # --- the link ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the network is there."""
        return self.uplink.connected

    def link(self, *, connected: bool) -> None:
        """The network comes or goes."""
        self.uplink.link(connected=connected)

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

    def _build(self, order: StartBuild) -> None:
        """A worker that builds: it may hang, die, or find that the model is none, as any worker may."""
        self._life += 1
        self._alive, self._stopping, self._duty = True, False, 1.0
        life, chance, troubles = self._life, self._chance, self.troubles
        work_ms = chance.uniform(*BUILD_MS)
        self._slice = Slice(order, work_ms, work_ms, self._clock.now_ms)
        self._slice.hangs = chance.random() < troubles.hang
        self._clock.after(500, lambda: self._building(life))
        if chance.random() < troubles.refuse:
            self._clock.after(1_000, lambda: self._build_refused(life, order))
        elif chance.random() < troubles.crash:
            self._clock.after(chance.uniform(100, 30_000), lambda: self._gone(life, expected=False, detail="signal 9"))
        self._moved()
        self._plan_end()

    def _building(self, life: int) -> None:
        if life == self._life and self._alive:
            phase = "choosing tactics"
            progress = BuildProgress(at_ms=self._clock.now_ms, pid=life, package="ocr", phase=phase, done_permille=0)
            self._tell(progress)

    def _build_refused(self, life: int, order: StartBuild) -> None:
        if life == self._life and self._alive:
            now_ms, detail = self._clock.now_ms, "no such operator"
            self._tell(BuildRefused(at_ms=now_ms, package_sha256=order.package_sha256, detail=detail))
            self._gone(life, expected=True, detail="refused")

    def _built(self, order: StartBuild) -> None:
        """The worker ends, and then the plan goes to the disk, where there is room."""
        life, now_ms = self._life, self._clock.now_ms
        self._tell(PlanMade(at_ms=now_ms, package_sha256=order.package_sha256, plan_bytes=PLAN_BYTES))
        self._clock.after(FREE_MS, lambda: self._gone(life, expected=True, detail=""))
        self._clock.after(FREE_MS + KEEP_MS, lambda: self._kept(order))

    def _kept(self, order: StartBuild) -> None:
        now_ms, package = self._clock.now_ms, order.package_sha256
        if self.troubles.disk_full:
            self._tell(PlanNotKept(at_ms=now_ms, package_sha256=package, detail="the disk is nearly full"))
        else:
            self._tell(PlanBuilt(at_ms=now_ms, package_sha256=package, plan_bytes=PLAN_BYTES))

    def _run(self, order: RunSlice) -> None:
        if not self._alive:
            return  # it has just died: WorkerGone is on its way
        chance, troubles = self._chance, self.troubles
        work_ms = self._slice_ms * chance.uniform(0.7, 1.3)
        self._slice = Slice(order, work_ms, work_ms, self._clock.now_ms)
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
        if isinstance(order, StartBuild):
            self._built(order)
            return
        if self._chance.random() < self.troubles.slice_fails:
            self._tell(SliceFailed(at_ms=self._clock.now_ms, key=order.key, index=order.index, detail="out of memory"))
            return
        self._clock.after(self._chance.uniform(5, 40), lambda: self._stored(order, round(running.work_ms)))

    def _stored(self, order: RunSlice, compute_ms: int) -> None:
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.SLICE, order.key, order.index)
            return
        self._disk.setdefault(order.key, []).append(order.index)
        outcome = SliceOutcome(order.index, order.last - order.first, 0, SHA256, SHA256, compute_ms)
        output_bytes = BULKY_BYTES if order.key in self._bulky else SMALL_BYTES
        self._tell(SliceStored(at_ms=self._clock.now_ms, key=order.key, outcome=outcome, output_bytes=output_bytes))

    def _stop(self, budget_ms: int) -> None:
        if not self._alive or self._stopping:
            return
        self._stopping = True
        life = self._life
        running = self._slice
        builds = running is not None and isinstance(running.order, StartBuild)
        drains = running is None or not (self.troubles.drain_hangs or running.hangs or builds)
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

    def _gone(self, life: int, *, expected: bool, detail: str, lost_accelerator: bool = False) -> None:
        if life != self._life or not self._alive:
            return
        self._alive, self._slice = False, None
        expected = expected or self._stopping
        self._moved()
        now_ms = self._clock.now_ms
        self._tell(
            WorkerGone(at_ms=now_ms, pid=life, expected=expected, detail=detail, lost_accelerator=lost_accelerator)
        )

    def kill_worker(self, *, lost_accelerator: bool = False) -> None:
        """The worker dies, if there is one; `lost_accelerator`: since its accelerator is gone."""
        detail = "the accelerator is lost" if lost_accelerator else "signal 9"
        self._gone(self._life, expected=False, detail=detail, lost_accelerator=lost_accelerator)

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
        if self.uplink.fetching is not grant:
            return  # it was paused
        self.uplink.fetching = None
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.LEASE, key)
        elif self._chance.random() < self.troubles.refuse:
            self._tell(LeaseRefused(at_ms=now_ms, key=key, detail="the input's digest is wrong"))
        else:
            self._disk.setdefault(key, [])
            if grant.upload_url:
                self._bulky.add(key)
            self._tell(BytesMoved(at_ms=now_ms, sent=0, received=grant.input_bytes))
            self._tell(LeaseOpened(at_ms=now_ms, key=key))

    def _handed_in(self, effect: HandIn) -> None:
        key = effect.grant.key
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.HAND_IN, key)
            return
        kind = effect.kind
        done = self._disk.pop(key, [])
        sha256 = SHA256 if done else ""
        self.uplink.outbox[key] = (kind, sha256)
        left = [index for index in done if index not in effect.uploaded]
        missing = tuple(left[INLINE_SLICES:]) if key in self._bulky else ()
        named = (*effect.uploaded, *missing)
        now_ms = self._clock.now_ms
        self._tell(
            HandInStored(at_ms=now_ms, key=key, kind=kind, statement_sha256=sha256, missing=missing, referenced=named)
        )

    def _settled(self, effect: SettleHandIn) -> None:
        if self.troubles.disk_full:
            self._refuse_write(Unwritten.VERDICT, effect.key)
            return
        self.uplink.outbox.pop(effect.key, None)
        self._tell(HandInSettled(at_ms=self._clock.now_ms, key=effect.key))
