"""Carries out what the core asks for, and tells it what came of it.

Everything that can be done at once is done at once, in the caller's stack: above all stopping the worker. What takes
time (disk, network) is a task whose end is an event. No effect raises: a failure is an event too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import assert_never

import msgspec

from agent import handin
from agent.core.events import (
    EffectType,
    HandIn,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    OpenLease,
    RecordVacate,
    Report,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    SettleHandIn,
    SliceStored,
    StartWorker,
    StopWorker,
    StoreFailed,
    StoreRecovered,
)
from agent.core.model import Grant, JobKey, Verdict
from agent.errors import DrivewayError, StoreError
from agent.fleet import messages, objects
from agent.fleet.desk import Desk
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.log import logger
from agent.ports import Clock, Emit, Signer
from agent.rows import StoredSlice
from agent.store import Store, StoreThread

STORE_RETRY_S = 2.0


class Hands:
    """The shells, as the core's effects need them. Use from the event loop's thread.

    `lease_energy` says what the lease at work has drawn so far, in micro-watt-hours.
    """

    def __init__(
        self,
        *,
        emit: Emit,
        clock: Clock,
        store: StoreThread,
        desk: Desk,
        shelf: Shelf,
        signer: Signer,
        unit: handin.Unit,
        limits: WorkerLimits,
        executor: str,
        lease_energy: Callable[[], int],
    ) -> None:
        self._emit, self._clock, self._store, self._desk = emit, clock, store, desk
        self._shelf, self._signer, self._unit = shelf, signer, unit
        self._capability = messages.Capability(
            device_class=unit.device_class, executor=executor, packages=tuple(shelf.packages)
        )
        self._station = Station(emit=emit, clock=clock, shelf=shelf, limits=limits, on_slice=self._slice_done)
        self._tasks: set[asyncio.Task[None]] = set()
        self._grants: dict[JobKey, Grant] = {}
        self._inputs: dict[JobKey, bytes] = {}
        self._lease_energy = lease_energy
        self._probing = False

    @property
    def items_done_in_slice(self) -> int:
        """How far the slice in flight is."""
        return self._station.items_done

    def perform(self, effect: EffectType) -> None:  # noqa: C901 - one arm an effect
        """Do one effect, or begin it."""
        match effect:
            case StopWorker():
                self._station.stop(effect.budget_ms)
            case RunSlice(key=key):
                span = (effect.first, effect.last)
                self._station.run(key, effect.index, span, self._inputs[key], self._grants[key].items)
            case SetPace():
                self._station.pace(effect.duty_permille)
            case StartWorker():
                self._station.start(effect.grant)
            case SendRequest():
                self._desk.request(effect, self._capability)
            case OpenLease():
                self._spawn(self._open_lease(effect.grant))
            case HandIn():
                self._spawn(self._hand_in(effect))
            case SendHandIn():
                self._spawn(self._send_hand_in(effect))
            case SettleHandIn():
                self._spawn(self._settle(effect, self._desk.verdict_envelope(effect.key)))
            case RecordVacate():
                self._spawn(self._record_vacate(effect))
            case Report():
                self._spawn(self.report(effect.name, effect.fields))
            case _:
                assert_never(effect)

    def remember(self, grant: Grant) -> None:
        """Take over a lease that an earlier run of the daemon left open."""
        self._grants[grant.key] = grant

    async def report(self, name: str, fields: dict[str, str | int | float | bool]) -> None:
        """One log event, to standard error and to the bounded log in the store."""
        logger().info(name, **fields)
        with contextlib.suppress(StoreError):  # a full disk is already told of, as the storage gate
            await self._store.call(Store.log, self._clock.wall_ms(), name, msgspec.json.encode(fields))

    async def close(self) -> None:
        """Kill a worker that is still there, and wait for what is being written."""
        await self._station.close()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[None, None, None]) -> None:
        """A task's last line of defence: the disk's refusal is an event, anything else is a bug that is logged."""
        try:
            await work
        except StoreError as error:
            self._store_failed(str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one effect must not end the daemon
            logger().error("effect_failed", error=repr(error))

    # --- leases -------------------------------------------------------------------------------------------------

    async def _open_lease(self, grant: Grant) -> None:
        key = grant.key
        self._grants[key] = grant
        if not await self._store.call(Store.open_lease, grant, self._clock.wall_ms()):
            self._refuse(key, "its nonce was used before: a replayed grant")
            return
        try:
            self._shelf.find(grant.package_sha256)
            body = await objects.fetch(grant.input_url, grant.input_sha256, grant.input_bytes)
        except DrivewayError as error:
            self._refuse(key, str(error))
            return
        self._inputs = {key: body}
        self._emit(LeaseOpened(at_ms=self._clock.boot_ms(), key=key))

    def _refuse(self, key: JobKey, detail: str) -> None:
        self._emit(LeaseRefused(at_ms=self._clock.boot_ms(), key=key, detail=detail))

    async def _hand_in(self, effect: HandIn) -> None:
        grant = self._grants[effect.key]
        wall_ms = self._clock.wall_ms()
        stored = await self._store.call(
            Store.hand_in,
            effect.key,
            why=None if effect.why is None else effect.why.value,
            energy_micro_wh=effect.facts.energy_micro_wh,
            wall_ms=wall_ms,
            build=lambda counter, kept: handin.build(
                unit=self._unit,
                signer=self._signer,
                grant=grant,
                facts=effect.facts,
                kind=effect.kind,
                why=effect.why,
                detail=effect.detail,
                wall_ms=wall_ms,
                counter=counter,
                slices=kept,
            ),
        )
        self._grants.pop(effect.key)
        self._inputs.pop(effect.key, None)
        await self.report(
            "lease_closed",
            {
                "lease": str(effect.key),
                "outcome": stored.kind.value,
                "why": "" if effect.why is None else effect.why.value,
                "detail": effect.detail,
                "slices": stored.slices,
                "wanted": len(grant.slices),
                "energy_micro_wh": effect.facts.energy_micro_wh,
                "duration_ms": effect.facts.finished_ms - effect.facts.started_ms,
            },
        )
        self._emit(
            HandInStored(
                at_ms=self._clock.boot_ms(),
                key=effect.key,
                kind=stored.kind,
                statement_sha256=stored.statement_sha256,
            )
        )

    async def _send_hand_in(self, effect: SendHandIn) -> None:
        message = await self._store.call(Store.outbox_message, effect.key)
        if message is None:
            return  # settled meanwhile
        kind, body = message
        self._desk.hand_in(kind.value, handin.address(body, kind, credit=effect.credit, have=effect.have))

    async def _settle(self, effect: SettleHandIn, envelope: bytes) -> None:
        await self._store.call(
            Store.settle,
            effect.key,
            verdict=effect.verdict,
            reason=effect.reason,
            paid_micro=effect.paid_micro,
            envelope=envelope,
        )
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

    # --- slices and the disk ------------------------------------------------------------------------------------

    def _slice_done(self, key: JobKey, stored: StoredSlice) -> None:
        self._spawn(self._keep_slice(key, stored, self._lease_energy()))

    async def _keep_slice(self, key: JobKey, stored: StoredSlice, energy_micro_wh: int) -> None:
        try:
            await self._store.call(Store.add_slice, key, stored, energy_micro_wh)
        except StoreError as error:
            self._store_failed(str(error), stored.outcome.index)
        else:
            self._emit(SliceStored(at_ms=self._clock.boot_ms(), key=key, outcome=stored.outcome))

    def _store_failed(self, detail: str, slice_index: int | None = None) -> None:
        """Tell the core, and try the disk until it takes writes again."""
        self._emit(StoreFailed(at_ms=self._clock.boot_ms(), detail=detail, slice_index=slice_index))
        if not self._probing:
            self._probing = True
            self._spawn(self._probe_store())

    async def _probe_store(self) -> None:
        while True:
            await asyncio.sleep(STORE_RETRY_S)
            with contextlib.suppress(StoreError):
                await self._store.call(Store.probe)
                self._probing = False
                self._emit(StoreRecovered(at_ms=self._clock.boot_ms()))
                return
