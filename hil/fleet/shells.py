"""A fleet car's computer and disk, stood in for: work takes as long as it is told to, and is kept in memory.

They keep the contracts of the real shells (`agent.hands`, `agent.store`) as the protocol sees them: a nonce opens one
lease, a slice counts once it is kept, a hand-in is signed for real by the car's own key with a counter that rises, it
is let go of only with its verdict, and what is in the outbox outlives every outage of broker and dispatcher. The input
of a job is not fetched, and nothing is computed: what is measured is messages, not arithmetic.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
from collections.abc import Callable
from typing import assert_never

import msgspec

from agent import handin
from agent.clock import boot_id
from agent.core.effects import (
    EffectType,
    EndPause,
    HandIn,
    KeepAwake,
    KeepBudgets,
    KeepGrant,
    OpenLease,
    PauseTransfers,
    RecordVacate,
    Report,
    RunSlice,
    SendHandIn,
    SendRenewal,
    SendRequest,
    SetPace,
    SetPowerLimit,
    SettleHandIn,
    StartBuild,
    StartWorker,
    StopWorker,
    UploadSlice,
)
from agent.core.events import (
    HandInNotSent,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    SliceStored,
    TransferFailed,
    WorkerGone,
    WorkerReady,
)
from agent.core.model import Grant, JobKey, SliceOutcome, Verdict
from agent.fleet import messages
from agent.fleet.desk import Desk
from agent.ports import Clock, Emit, Signer
from agent.rows import Engine, HandInRow, StoredSlice
from agent.trust import session
from hil.fleet.parked import POLICY

DEVICE_CLASS, EXECUTOR, PACKAGE = "fleet-car", "virtual", "fleet-work"
PACKAGE_SHA256 = hashlib.sha256(PACKAGE.encode()).hexdigest()
ENGINE = Engine(executor=EXECUTOR, model_sha256="1" * 64, kernels_sha256="2" * 64)
CAPABILITY = messages.Capability(device_class=DEVICE_CLASS, executor=EXECUTOR, packages=(PACKAGE_SHA256,))
AGENT_SHA256 = "3" * 64
POLICY_SHA256 = handin.policy_sha256(POLICY)
MICRO_BATCH_MS = 15.0
NONCES_MAX = 10_000


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """How long the computer takes: to start a worker, and for a slice (`spread`: give or take that share)."""

    worker_start_s: float = 0.5
    slice_s: float = 5.0
    spread: float = 0.3


class Settled(msgspec.Struct, frozen=True):
    """What a car was told about a hand-in: the last word on it."""

    job: str
    epoch: int
    verdict: Verdict
    paid_micro: int
    statement_sha256: str


class Shells:
    """Carries out one car's effects; what came of them goes to `emit`."""

    def __init__(
        self, unit: str, *, desk: Desk, signer: Signer, emit: Emit, clock: Clock, work: Work, settled: list[Settled]
    ) -> None:
        self._desk, self._emit, self._clock, self._work = desk, emit, clock, work
        self._unit = handin.Unit(unit, DEVICE_CLASS, boot_id(), AGENT_SHA256)
        self._session = session.begin(signer, signer.protection, unit=unit, number=1, boot_id=boot_id())
        self._chance = random.Random(unit)
        self._pace = self._chance.random()
        """Of the first lease: cars that start together do not go on in step."""
        self._worker = 0
        self._alive = False
        self._running: asyncio.TimerHandle | None = None
        self._counter = 0
        self._nonces: dict[str, JobKey] = {}
        self._slices: dict[JobKey, list[StoredSlice]] = {}
        self.outbox: dict[JobKey, HandInRow] = {}
        self._settled = settled
        self.made = 0
        """Hand-ins with a statement."""

    def perform(self, effect: EffectType) -> None:  # noqa: C901, PLR0912 - one arm an effect
        """Do one effect, or begin it."""
        match effect:
            case StartWorker():
                self._start()
            case StopWorker():
                self._stop()
            case RunSlice():
                seconds = self._pace * self._work.slice_s * (1 + self._work.spread * self._chance.uniform(-1, 1))
                self._later(seconds, functools.partial(self._computed, effect, seconds))
            case SendRequest():
                self._desk.request(effect, CAPABILITY)
            case SendRenewal():
                self._desk.renew(effect)
            case OpenLease(grant=grant):
                self._open(grant)
            case HandIn():
                self._hand_in(effect)
            case SendHandIn():
                self._send(effect)
            case SettleHandIn():
                self._settle(effect)
            case UploadSlice(key=key, index=index):
                detail = "a fleet car's answers fit into its messages"
                self._emit(TransferFailed(at_ms=self._clock.boot_ms(), key=key, index=index, detail=detail))
            case SetPace() | SetPowerLimit() | KeepAwake() | PauseTransfers() | EndPause() | KeepBudgets():
                pass
            case KeepGrant() | RecordVacate() | Report():
                pass
            case StartBuild():
                pass  # a fleet car is never told that a plan is missing
            case _:
                assert_never(effect)

    def close(self) -> None:
        """Nothing more comes of it."""
        self._alive = False
        if self._running is not None:
            self._running.cancel()

    # --- the worker --------------------------------------------------------------------------------------------

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._running = asyncio.get_running_loop().call_later(seconds, call)

    def _start(self) -> None:
        self._worker += 1
        self._alive = True
        self._later(self._work.worker_start_s, self._ready)

    def _ready(self) -> None:
        self._emit(
            WorkerReady(
                at_ms=self._clock.boot_ms(),
                pid=self._worker,
                executor=EXECUTOR,
                device=DEVICE_CLASS,
                package=PACKAGE,
                micro_batch_ms=MICRO_BATCH_MS,
            )
        )

    def _stop(self) -> None:
        if not self._alive:
            return
        self.close()
        self._emit(WorkerGone(at_ms=self._clock.boot_ms(), pid=self._worker, expected=True, detail=""))

    def _computed(self, order: RunSlice, seconds: float) -> None:
        """The slice is done, and kept at once. What was in flight when the worker was stopped never comes here."""
        items = order.last - order.first
        body, sha256 = answers(items)
        outcome = SliceOutcome(order.index, items, 0, sha256, sha256, round(seconds * 1000))
        self._slices.setdefault(order.key, []).append(StoredSlice(outcome, body, ENGINE))
        self._emit(SliceStored(at_ms=self._clock.boot_ms(), key=order.key, outcome=outcome, output_bytes=len(body)))

    # --- the disk ----------------------------------------------------------------------------------------------

    def _open(self, grant: Grant) -> None:
        if self._nonces.setdefault(grant.nonce, grant.key) != grant.key:
            detail = "its nonce was used before: a replayed grant"
            refused = LeaseRefused(at_ms=self._clock.boot_ms(), key=grant.key, detail=detail, replayed=True)
            self._emit(refused)
            return
        if len(self._nonces) > NONCES_MAX:
            del self._nonces[next(iter(self._nonces))]
        self._emit(LeaseOpened(at_ms=self._clock.boot_ms(), key=grant.key))

    def _hand_in(self, effect: HandIn) -> None:
        self._counter += 1
        row = handin.build(
            unit=self._unit,
            session=self._session,
            grant=effect.grant,
            facts=effect.facts,
            kind=effect.kind,
            why=effect.why,
            detail=effect.detail,
            policy_sha256=POLICY_SHA256,
            wall_ms=self._clock.wall_ms(),
            counter=self._counter,
            log_index=2 * self._counter,
            slices=self._slices.pop(effect.grant.key, []),
        )
        self.outbox[effect.grant.key] = row
        self._pace = 1.0
        self.made += row.statement is not None
        self._emit(
            HandInStored(
                at_ms=self._clock.boot_ms(),
                key=effect.grant.key,
                kind=row.kind,
                statement_sha256=row.statement_sha256,
            )
        )

    def _send(self, effect: SendHandIn) -> None:
        row = self.outbox.get(effect.key)
        if row is None:
            return  # settled meanwhile
        body = handin.address(row.body, row.kind, credit=effect.credit, have=effect.have, outlook=effect.outlook)
        if not self._desk.hand_in(row.kind.value, effect.key, body):
            self._emit(HandInNotSent(at_ms=self._clock.boot_ms(), key=effect.key))

    def _settle(self, effect: SettleHandIn) -> None:
        row = self.outbox.pop(effect.key, None)
        if row is not None and row.statement is not None:
            self._settled.append(
                Settled(effect.key.job, effect.key.epoch, effect.verdict, effect.paid_micro, row.statement_sha256)
            )
        self._emit(HandInSettled(at_ms=self._clock.boot_ms(), key=effect.key))


@functools.lru_cache(maxsize=64)
def answers(items: int) -> tuple[bytes, str]:
    """So many answers as a package writes them, and their digest."""
    body = msgspec.json.encode([{"item": number} for number in range(items)])
    return body, hashlib.sha256(body).hexdigest()
