"""The other side of the core, in memory: a car, a computer, a worker, a disk and a dispatcher, as events.

`Shell` carries out effects the way the real shells do and keeps what happened, so that a test can let anything happen
in any order and then ask whether a promise was broken. It knows nothing of the core's inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.core import signals
from agent.core.effects import (
    EffectType,
    HandIn,
    OpenLease,
    PauseTransfers,
    RunSlice,
    SendHandIn,
    SendRenewal,
    SendRequest,
    SettleHandIn,
    StartBuild,
    StartWorker,
    StopWorker,
    UploadSlice,
)
from agent.core.events import (
    ComputeSeen,
    EventType,
    GrantSeen,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LinkChanged,
    PlanBuilt,
    PlanMade,
    Sample,
    SignalsSeen,
    SignalValue,
    SliceStored,
    SliceUploaded,
    Tick,
    TransferFailed,
    VerdictSeen,
    WorkerGone,
    WorkerReady,
)
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.model import Grant, HandInKind, JobKey, SliceOutcome, Verdict
from agent.core.policy import Policy
from agent.core.state import State, initial

PARKED: dict[str, SignalValue] = {
    signals.SPEED: 0.0,
    signals.GEAR: 126.0,
    signals.BRAKE: 0.0,
    signals.LOW_VOLTAGE_STATE: "LOCK",
    signals.DOOR_HANDLE: False,
    **dict.fromkeys((*signals.DOORS, signals.TRUNK), False),
    signals.SEAT: "EMPTY",
    signals.DRIVER_PRESENT: False,
    signals.CHARGE: 80.0,
    signals.CABLE: True,
}
SHA256 = "e" * 64
"""The digest of every statement here."""
POLICY = Policy(parked_for_s=3)


def car(at_ms: int, changes: dict[str, SignalValue] | None = None) -> SignalsSeen:
    """Every signal of a car that is parked, empty and plugged in, with `changes`."""
    values = PARKED | (changes or {})
    return SignalsSeen(at_ms=at_ms, source="bus", samples=tuple(Sample(path, value) for path, value in values.items()))


def computer(at_ms: int, die_c: float | None = 50.0, power_w: float | None = 20.0) -> ComputeSeen:
    """A reading of the computer."""
    return ComputeSeen(at_ms=at_ms, die_c=die_c, power_w=power_w, sensor="simulated")


def grant(number: int, epoch: int = 1, slices: tuple[int, ...] = (0, 1, 2), ttl_ms: int = 60_000) -> Grant:
    """A grant of job `number`: 12 items in slices of 4."""
    return Grant(
        job=f"job{number}",
        epoch=epoch,
        nonce=f"{number:016x}{epoch:016x}",
        customer="acme",
        package="ocr",
        package_sha256="a" * 64,
        input_url="http://127.0.0.1/objects/x",
        input_sha256="b" * 64,
        input_bytes=10,
        items=12,
        slice_items=4,
        slices=slices,
        ttl_ms=ttl_ms,
        price_micro_per_item=10,
        currency="USD",
    )


@dataclass
class Shell:
    """Drives the core, and holds what the world would hold."""

    state: State = field(default_factory=lambda: initial("unit-1", POLICY, 0))
    now_ms: int = 0
    changes: dict[str, SignalValue] = field(default_factory=dict)
    speaking: bool = True
    die_c: float | None = 50.0
    effects: list[EffectType] = field(default_factory=list)
    worker_pid: int = 0
    workers_alive: int = 0
    waiting: list[EffectType] = field(default_factory=list)
    disk: dict[JobKey, set[int]] = field(default_factory=dict)
    outbox: dict[JobKey, tuple[HandInKind, frozenset[int]]] = field(default_factory=dict)
    settled: dict[JobKey, frozenset[int]] = field(default_factory=dict)
    granted: int = 0
    uploaded: set[tuple[JobKey, int]] = field(default_factory=set)
    slice_bytes: int = 100
    inline_bytes: int = 9_000
    """So much of a hand-in's answers fits into its message."""

    def tell(self, event: EventType) -> list[EffectType]:
        """One event into the core; what it asked for is kept, and waits to be carried out."""
        if isinstance(event, WorkerGone):
            self.workers_alive = max(0, self.workers_alive - 1)
        self.state, effects = step(self.state, event)
        self.effects += effects
        self.waiting += effects
        return list(effects)

    def advance(self, ms: int) -> None:
        """Let time pass in steps of 100 ms, the car and the computer speaking as they do."""
        for _ in range(ms // 100):
            self.now_ms += 100
            if self.speaking:
                self.tell(car(self.now_ms, self.changes))
            if self.now_ms % 500 == 0:
                self.tell(computer(self.now_ms, self.die_c))
            self.tell(Tick(at_ms=self.now_ms))

    def connect(self) -> None:
        """The link comes up."""
        self.tell(LinkChanged(at_ms=self.now_ms, connected=True, broker="b:1"))

    def carry_out(self, wanted: Callable[[EffectType], bool] = lambda _effect: True) -> bool:
        """Carry out the oldest waiting effect that is wanted; False when there is none."""
        for effect in self.waiting:
            if wanted(effect):
                self.waiting.remove(effect)
                self._do(effect)
                return True
        return False

    def settle_down(self, limit: int = 200) -> None:
        """Carry out whatever waits, and what follows from it."""
        for _ in range(limit):
            if not self.carry_out():
                return

    def _do(self, effect: EffectType) -> None:  # noqa: C901, PLR0912 - one arm an effect
        now_ms = self.now_ms
        match effect:
            case SendRequest(rid=rid):
                self.granted += 1
                self.tell(GrantSeen(at_ms=now_ms, rid=rid, grant=grant(self.granted), retry_ms=0))
            case OpenLease(grant=one):
                self.disk.setdefault(one.key, set())
                self.tell(LeaseOpened(at_ms=now_ms, key=one.key))
            case StartWorker():
                self.worker_pid += 1
                self.workers_alive += 1
                self.tell(
                    WorkerReady(
                        at_ms=now_ms,
                        pid=self.worker_pid,
                        executor="onnxruntime_cpu",
                        device="cpu",
                        package="ocr",
                        micro_batch_ms=15.0,
                    )
                )
            case StartBuild(package_sha256=package):
                self.worker_pid += 1
                self.workers_alive += 1
                self.tell(PlanMade(at_ms=now_ms, package_sha256=package, plan_bytes=10))
                self.tell(WorkerGone(at_ms=now_ms, pid=self.worker_pid, expected=True, detail=""))
                self.tell(PlanBuilt(at_ms=now_ms, package_sha256=package, plan_bytes=10))
            case StopWorker():
                self.waiting = [one for one in self.waiting if not isinstance(one, RunSlice | StartWorker | StartBuild)]
                self.tell(WorkerGone(at_ms=now_ms, pid=self.worker_pid, expected=True, detail=""))
            case RunSlice(key=key, index=index):
                self.disk[key].add(index)
                outcome = SliceOutcome(index, 4, 0, "c" * 64, "d" * 64, 100)
                self.tell(SliceStored(at_ms=now_ms, key=key, outcome=outcome, output_bytes=self.slice_bytes))
            case SendRenewal(rid=rid, key=key):
                lease = self.state.lease
                if lease is not None and lease.key == key:
                    self.tell(GrantSeen(at_ms=now_ms, rid=rid, grant=lease.grant, retry_ms=0))
            case UploadSlice(key=key, index=index):
                self.uploaded.add((key, index))
                self.tell(SliceUploaded(at_ms=now_ms, key=key, index=index))
            case PauseTransfers():
                for stopped in [each for each in self.waiting if isinstance(each, UploadSlice)]:
                    self.waiting.remove(stopped)
                    key, index = stopped.key, stopped.index
                    self.tell(TransferFailed(at_ms=now_ms, key=key, index=index, detail="paused", paused=True))
            case HandIn(grant=grant_, kind=kind, uploaded=uploaded):
                self._hand_in(grant_, kind, uploaded)
            case SendHandIn(key=key, credit=credit):
                self._verdict(key, credit)
            case SettleHandIn(key=key):
                self.settled[key] = self.outbox.pop(key)[1]
                self.tell(HandInSettled(at_ms=now_ms, key=key))
            case _:
                pass

    def _hand_in(self, one: Grant, kind: HandInKind, uploaded: tuple[int, ...]) -> None:
        slices = frozenset(self.disk.pop(one.key, set()))
        self.outbox[one.key] = (kind, slices)
        inline = sorted(slices - set(uploaded))
        missing = tuple(inline[self.inline_bytes // self.slice_bytes :])
        sha256 = SHA256 if slices else ""
        self.tell(
            HandInStored(
                at_ms=self.now_ms,
                key=one.key,
                kind=kind,
                statement_sha256=sha256,
                missing=missing,
                referenced=(*uploaded, *missing),
            )
        )

    def _verdict(self, key: JobKey, credit: int) -> None:
        following = None
        if credit:
            self.granted += 1
            following = grant(self.granted)
        self.tell(
            VerdictSeen(
                at_ms=self.now_ms,
                key=key,
                verdict=Verdict.SETTLED,
                reason="",
                paid_micro=120,
                statement_sha256=SHA256 if self.outbox[key][1] else "",
                retry_ms=0,
                envelope=b"",
                next_grant=following,
            )
        )

    def gate(self) -> GateState:
        """The gate's state now."""
        return self.state.gates.state

    def open_the_gate(self) -> None:
        """Park, connect and wait until the gate is open."""
        self.connect()
        self.advance(4_000)
        assert self.gate() is GateState.OPEN, self.state.gates.reasons
