"""Carries out what the core asks for, and tells it what came of it.

Everything that can be done at once is done at once, in the caller's stack: above all stopping the worker. What takes
time (disk, network) is a task whose end is an event. No effect raises: a failure is an event too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import assert_never

from agent import budgets, handin, owner
from agent.bulk import Bulk
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
    EventType,
    HandInFailed,
    HandInNotSent,
    HandInSettled,
    HandInStored,
    SliceFailed,
    SliceStored,
    StoreFailed,
    StoreRecovered,
    Unwritten,
    WorkerGone,
)
from agent.core.model import JobKey, Spent, Verdict
from agent.core.policy import Policy
from agent.diary import Diary
from agent.errors import StoreError
from agent.fleet import messages
from agent.fleet.desk import Desk
from agent.inference.memory_probe import MemoryProbe
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.inference.workshop import Workshop
from agent.log import logger
from agent.ports import Clock, Emit
from agent.rows import StoredSlice
from agent.store import Store, StoreThread
from agent.tasks import finished
from agent.telemetry.limits import PowerLimits
from agent.transfers import Transfers
from agent.trust.session import Session
from agent.wire import Confinement

STORE_RETRY_S = 2.0
CLOSE_S = 3.0


class Hands:
    """The shells, as the core's effects need them. Use from the event loop's thread.

    `session` is what statements are signed with, and raises TrustError before there is one; `spent` says what the
    lease at work has drawn and cost so far; `policy` is the one in force; `power_limits` holds the computer back by its
    own means, while there is a worker; `keep_awake` takes the wish to be kept awake for so many milliseconds;
    `accelerator_lost` hears that a worker lost the accelerator.
    """

    def __init__(
        self,
        *,
        emit: Emit,
        clock: Clock,
        store: StoreThread,
        desk: Desk,
        shelf: Shelf,
        plans: PlannedShelf,
        session: Callable[[], Session],
        unit: handin.Unit,
        limits: WorkerLimits,
        executor: str,
        transfers: Transfers,
        spent: Callable[[], Spent],
        policy: Callable[[], Policy],
        power_limits: PowerLimits,
        keep_awake: Callable[[int], None],
        accelerator_lost: Callable[[str], None],
        memory: MemoryProbe | None = None,
    ) -> None:
        self._emit, self._clock, self._store, self._desk = emit, clock, store, desk
        self._shelf, self._plans, self._session, self._unit = shelf, plans, session, unit
        self._executor, self._diary = executor, Diary(store, clock)
        self._bulk = Bulk(emit=emit, clock=clock, store=store, shelf=shelf, transfers=transfers)
        self._station = Station(
            emit=self._from_station,
            clock=clock,
            shelf=shelf,
            plans=plans,
            limits=limits,
            on_slice=self._slice_done,
            on_lost=accelerator_lost,
            memory=memory,
        )
        self._workshop = Workshop(
            emit=self._from_station, clock=clock, shelf=shelf, plans=plans, limits=limits, on_lost=accelerator_lost
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._spent, self._policy, self._power_limits = spent, policy, power_limits
        self._probing = self._restocking = False
        self._keep_awake = keep_awake

    @property
    def items_done_in_slice(self) -> int:
        """How far the slice in flight is."""
        return self._station.items_done

    @property
    def confinement(self) -> tuple[Confinement, ...]:
        """What shuts the worker in, and what of that is absent here; empty without a worker."""
        return self._station.confinement or self._workshop.confinement

    @property
    def memory_returned_ms(self) -> int | None:
        """How long after its worker's end the memory was back, the last time that was seen."""
        return self._station.memory_returned_ms

    def perform(self, effect: EffectType) -> None:
        """Do one effect, or begin it. Never raises: a bug in one effect must not keep the next from being done."""
        try:
            self._begin(effect)
        except Exception as error:  # noqa: BLE001 - as the docstring says
            logger().error("effect_failed", effect=type(effect).__name__, error=repr(error))
            if isinstance(effect, StartWorker):
                self._station.give_up(repr(error))
            elif isinstance(effect, StartBuild):
                self._from_station(WorkerGone(at_ms=self._clock.boot_ms(), pid=0, expected=False, detail=repr(error)))

    def _begin(self, effect: EffectType) -> None:  # noqa: C901, PLR0912 - one arm an effect
        match effect:
            case StopWorker():
                self._station.stop(effect.budget_ms)
                self._workshop.stop(effect.budget_ms)
            case RunSlice():
                self._run_slice(effect)
            case SetPace():
                self._station.pace(effect.duty_permille)
                self._workshop.pace(effect.duty_permille)
            case StartWorker():
                self._power_limits.worker_here(True)
                self._station.start(effect.grant)
            case StartBuild(package_sha256=package_sha256):
                self._power_limits.worker_here(True)
                self._workshop.start(package_sha256)
            case SendRequest():
                self._desk.request(effect, self._capability())
                self._spawn(self._restock(), Unwritten.NOTE)
            case SendRenewal():
                self._desk.renew(effect)
            case UploadSlice(key=key, index=index):
                self._spawn(self._bulk.upload(effect), Unwritten.NOTE, key, index)
            case PauseTransfers():
                self._bulk.pause()
            case OpenLease(grant=grant):
                self._spawn(self._bulk.open_lease(grant), Unwritten.LEASE, grant.key)
            case KeepGrant(grant=grant):
                self._spawn(self._store.call(Store.keep_grant, grant), Unwritten.NOTE)
            case HandIn(grant=grant):
                self._spawn(self._hand_in(effect), Unwritten.HAND_IN, grant.key)
            case SendHandIn(key=key):
                self._spawn(self._send_hand_in(effect), Unwritten.NOTE, key)
            case SettleHandIn(key=key):
                self._spawn(self._settle(effect), Unwritten.VERDICT, key)
            case SetPowerLimit(limit_w=limit_w):
                self._power_limits.want(limit_w)
            case KeepAwake(for_ms=for_ms):
                self._keep_awake(for_ms)
            case EndPause():
                end = self._store.call(owner.end_pause, effect.until_ms, effect.until_wall_ms)
                self._spawn(end, Unwritten.NOTE)
            case KeepBudgets():
                write = self._store.call(budgets.remember, self._unit.boot, effect.kept)
                self._spawn(write, Unwritten.NOTE)
            case RecordVacate():
                self._spawn(self._record_vacate(effect), Unwritten.NOTE)
            case Report():
                self._spawn(self.report(effect.name, effect.fields), Unwritten.NOTE)
            case _:
                assert_never(effect)

    def _from_station(self, event: EventType) -> None:
        """Pass on what the station says; without a worker the computer is held back no longer."""
        if isinstance(event, WorkerGone):
            self._power_limits.worker_here(False)
        self._emit(event)

    async def report(self, name: str, fields: dict[str, str | int | float | bool]) -> None:
        """One log event, to standard error and to the bounded log in the store."""
        await self._diary.write(name, fields)

    async def close(self) -> None:
        """Kill a worker that is still there, and wait for what is being written, though not for a broken disk."""
        self._bulk.pause()
        try:
            await self._station.close()
            await self._workshop.close()
            await finished(self._tasks, CLOSE_S)
        finally:
            self._bulk.close()

    def _capability(self) -> messages.Capability:
        """What this unit can and will run now: no package that a worker refused, and none that lacks its plan."""
        return messages.Capability(
            device_class=self._unit.device_class,
            executor=self._executor,
            packages=self._plans.offered,
            classes=self._policy().workload_classes,
        )

    async def _restock(self) -> None:
        """Look for packages that were put there since; the next request offers them. A disk that hangs is asked once.

        On a thread, for that very reason: a request goes out, and the driver is seen, whatever the disk does.
        """
        if self._restocking:
            return
        self._restocking = True
        try:
            found = await asyncio.to_thread(self._shelf.newcomers_if_changed)
            if found:
                self._shelf.take_in(found)
                await self._plans.refresh()
        finally:
            self._restocking = False

    def _spawn(
        self, work: Coroutine[None, None, None], step: Unwritten, key: JobKey | None = None, index: int | None = None
    ) -> None:
        """Begin a task; `step`, `key` and `index` say what is undone should the disk refuse it."""
        task = asyncio.get_running_loop().create_task(self._guard(work, step, key, index))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(
        self, work: Coroutine[None, None, None], step: Unwritten, key: JobKey | None, index: int | None
    ) -> None:
        """The disk's refusal is an event, and so is a bug in a step that the core waits for."""
        try:
            await work
        except StoreError as error:
            self._store_failed(str(error), step, key, index)
        except Exception as error:  # noqa: BLE001 - a bug in one effect must not end the daemon
            logger().error("effect_failed", step=step.value, lease=str(key), error=repr(error))
            now_ms = self._clock.boot_ms()
            if step is Unwritten.LEASE and key is not None:
                self._bulk.refuse(key, repr(error), transient=True)
            elif step is Unwritten.HAND_IN and key is not None:
                self._emit(HandInFailed(at_ms=now_ms, key=key, detail=repr(error)))
            elif step is Unwritten.VERDICT:
                self._store_failed(repr(error), step, key, index)
            elif step is Unwritten.SLICE and key is not None and index is not None:
                self._emit(SliceFailed(at_ms=now_ms, key=key, index=index, detail=repr(error)))

    # --- leases -------------------------------------------------------------------------------------------------

    async def _hand_in(self, effect: HandIn) -> None:
        grant = effect.grant
        wall_ms = self._clock.wall_ms()
        policy_sha256, session = handin.policy_sha256(self._policy()), self._session()
        stored = await self._store.call(
            Store.hand_in,
            grant,
            why=None if effect.why is None else effect.why.value,
            spent=Spent(effect.facts.energy_micro_wh, effect.facts.cost_micro),
            wall_ms=wall_ms,
            build=lambda counter, log_index, kept: handin.build(
                unit=self._unit,
                session=session,
                grant=grant,
                facts=effect.facts,
                kind=effect.kind,
                why=effect.why,
                detail=effect.detail,
                policy_sha256=policy_sha256,
                wall_ms=wall_ms,
                counter=counter,
                log_index=log_index,
                slices=kept,
                uploaded=effect.uploaded,
            ),
        )
        self._bulk.forget(grant.key)
        self._station.forget(grant.key)
        self._emit(
            HandInStored(
                at_ms=self._clock.boot_ms(),
                key=grant.key,
                kind=stored.kind,
                statement_sha256=stored.statement_sha256,
                missing=stored.missing,
                referenced=stored.referenced,
            )
        )
        await self.report(
            "lease_closed",
            {
                "lease": str(grant.key),
                "outcome": stored.kind.value,
                "why": "" if effect.why is None else effect.why.value,
                "detail": effect.detail,
                "slices": stored.slices,
                "wanted": len(grant.slices),
                "energy_micro_wh": effect.facts.energy_micro_wh,
                "cost_micro": effect.facts.cost_micro,
                "duration_ms": effect.facts.finished_ms - effect.facts.started_ms,
            },
        )

    async def _send_hand_in(self, effect: SendHandIn) -> None:
        message = await self._store.call(Store.outbox_message, effect.key)
        if message is None:
            return  # settled meanwhile
        kind, body = message
        body = handin.address(body, kind, credit=effect.credit, have=effect.have, outlook=effect.outlook)
        if not self._desk.hand_in(kind.value, effect.key, body):
            self._emit(HandInNotSent(at_ms=self._clock.boot_ms(), key=effect.key))

    async def _settle(self, effect: SettleHandIn) -> None:
        await self._store.call(
            Store.settle,
            effect.key,
            verdict=effect.verdict,
            reason=effect.reason,
            paid_micro=effect.paid_micro,
            envelope=effect.envelope,
        )
        self._emit(HandInSettled(at_ms=self._clock.boot_ms(), key=effect.key))
        fields: dict[str, str | int | float | bool] = {
            "lease": str(effect.key),
            "verdict": effect.verdict.value,
            "reason": effect.reason,
            "paid_micro": effect.paid_micro,
        }
        name = "lease_settled" if effect.verdict in {Verdict.SETTLED, Verdict.DUPLICATE} else "lease_lost"
        await self.report(name, fields)

    async def _record_vacate(self, effect: RecordVacate) -> None:
        await self._store.call(Store.vacate, self._clock.wall_ms(), effect.cause, effect.idle_ms, effect.gone_ms)
        await self.report("vacated", {"cause": effect.cause, "idle_ms": effect.idle_ms, "gone_ms": effect.gone_ms})

    def _run_slice(self, effect: RunSlice) -> None:
        given = self._bulk.input_of(effect.key)
        if given is not None:
            self._station.run(effect.key, effect.index, (effect.first, effect.last), given.memory, given.items)
            return
        now_ms, detail = self._clock.boot_ms(), "its input is gone"
        self._emit(SliceFailed(at_ms=now_ms, key=effect.key, index=effect.index, detail=detail))

    # --- slices and the disk ------------------------------------------------------------------------------------

    def _slice_done(self, key: JobKey, stored: StoredSlice) -> None:
        keep = self._keep_slice(key, stored, self._spent())
        self._spawn(keep, Unwritten.SLICE, key, stored.outcome.index)

    async def _keep_slice(self, key: JobKey, stored: StoredSlice, spent: Spent) -> None:
        await self._store.call(Store.add_slice, key, stored, spent)
        now_ms = self._clock.boot_ms()
        self._emit(SliceStored(at_ms=now_ms, key=key, outcome=stored.outcome, output_bytes=len(stored.output)))

    def _store_failed(self, detail: str, step: Unwritten, key: JobKey | None, index: int | None) -> None:
        """Tell the core, and try the disk until it takes writes again."""
        self._emit(StoreFailed(at_ms=self._clock.boot_ms(), detail=detail, step=step, key=key, index=index))
        if not self._probing:
            self._probing = True
            self._spawn(self._probe_store(), Unwritten.NOTE)

    async def _probe_store(self) -> None:
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            with contextlib.suppress(Exception):  # whatever it is, the disk is asked again
                await self._store.call(Store.probe)
                self._probing = False
                self._emit(StoreRecovered(at_ms=self._clock.boot_ms()))
                return
