"""What the control socket is told: each verb's answer, from the core's state and the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

import msgspec

from agent import key_view, ledger_view, timeline, view
from agent.catalogue_view import CatalogueView
from agent.control import ControlRequest
from agent.core.machine import as_of
from agent.core.model import JobKey
from agent.core.state import State
from agent.errors import StoreError
from agent.fleet.desk import Desk
from agent.fleet.link import Link
from agent.hands import Hands
from agent.inference.proof import ProofView, Prover
from agent.inference.shelf import Shelf
from agent.owner import OwnerDesk
from agent.package_list import on_shelf
from agent.ports import Clock, CountingSource
from agent.recorder import Recorder
from agent.rotation import KeyKeeper
from agent.selftest import SelfTest
from agent.store import Store, StoreThread
from agent.updates import UpdateAnswer, Updates, UpdateView


class Recorded(msgspec.Struct, frozen=True):
    """Where a recording was written to."""

    file: str
    bytes: int


class SelfTestView(msgspec.Struct, frozen=True):
    """The steps of the self-test by name, and what is wrong with each ("": nothing); and what a worker proved."""

    steps: dict[str, str]
    proof: ProofView


class Answers:
    """Answers one request at a time; `state` gives the core's state as it is when asked."""

    def __init__(
        self,
        *,
        state: Callable[[], State],
        clock: Clock,
        store: StoreThread,
        hands: Hands,
        desk: Desk,
        link: Link,
        shelf: Shelf,
        keys: KeyKeeper,
        owner: OwnerDesk,
        updates: Updates,
        recorder: Recorder,
        recordings: Path,
        sources: Sequence[CountingSource] = (),
        catalogue: Callable[[], CatalogueView] | None = None,
        self_test: SelfTest,
        prover: Prover,
    ) -> None:
        self._self_test, self._prover = self_test, prover
        self._catalogue = catalogue
        self._state, self._clock, self._store = state, clock, store
        self._hands, self._desk, self._shelf, self._owner = hands, desk, shelf, owner
        self._link, self._sources = link, sources
        self._recorder, self._recordings = recorder, recordings
        self._keys, self._updates = keys, updates

    async def answer(self, request: ControlRequest) -> object:  # noqa: C901, PLR0911, PLR0912 - one answer a verb
        """The data of one answer; raises DrivewayError with what stands in the way."""
        offset_ms = self._clock.wall_ms() - self._clock.boot_ms()
        match request.verb:
            case "status":
                return await self.status()
            case "why":
                return view.reasons(self._now(), offset_ms)
            case "signals":
                return self.signals()
            case "leases":
                return await self._leases(request)
            case "timeline":
                past = await self._store.call(timeline.past, request.since_wall_ms)
                return timeline.timeline(self._now(), past, request.since_wall_ms)
            case "earnings":
                totals = await self._store.call(Store.totals)
                total = view.earnings(self._now(), totals)
                return view.EarningsList(await self._leases(request), total, totals.energy_micro_wh / 1e6)
            case "ledger":
                return await self._store.call(ledger_view.show, request.limit)
            case "ledger_prove":
                return await self._prove(request)
            case "keys":
                return await key_view.look(self._keys.key)
            case "keys_rotate":
                return await self._keys.rotate(reason=request.reason, overlap_s=request.overlap_s)
            case "record":
                return await self._record()
            case "self_test":
                return SelfTestView(await self._self_test.again(), await self._prover.prove())
            case "packages":
                return on_shelf(self._shelf.packages.values(), self._shelf.refused, self._now())
            case "update" | "update_show" | "update_defer" | "update_now":
                return await self._update(request)
            case (
                "owner"
                | "pause"
                | "resume"
                | "finish"
                | "owner_set"
                | "owner_clear"
                | "consent_accept"
                | "consent_withdraw"
            ):
                return await self._owner.answer(request)
            case _:
                assert_never(request.verb)

    async def _update(self, request: ControlRequest) -> UpdateAnswer | UpdateView:
        match request.verb:
            case "update":
                return await self._updates.hear(request.release)
            case "update_defer":
                return await self._updates.defer(request.for_ms)
            case "update_now":
                return await self._updates.now()
            case _:
                return self._updates.view()

    async def _prove(self, request: ControlRequest) -> ledger_view.Proof:
        if request.leaf is not None:
            return await self._store.call(ledger_view.prove_leaf, request.leaf)
        return await self._store.call(ledger_view.prove_lease, JobKey(request.job, request.epoch))

    async def _record(self) -> Recorded:
        """Write down what was recorded until now, beside the event loop: it may be some megabytes."""
        taken, wall_ms = self._recorder.taken(), self._clock.wall_ms()
        try:
            written = await asyncio.to_thread(taken.write, self._recordings, wall_ms, "asked for")
            return Recorded(str(written.path), written.size_bytes)
        except OSError as error:
            raise StoreError(f"cannot write a recording into {self._recordings}: {error}") from error

    def _now(self) -> State:
        """The state as it is at this moment: the core's own look may be a moment old."""
        return as_of(self._state(), self._clock.boot_ms())

    async def _leases(self, request: ControlRequest) -> list[view.LeaseEarningsView]:
        rows = await self._store.call(Store.leases, request.limit, request.since_wall_ms, request.until_wall_ms)
        return [view.lease_earnings(row) for row in rows]

    def signals(self) -> list[view.SignalView]:
        """What the car says."""
        return view.signal_list(self._now(), self._clock.boot_ms())

    async def status(self) -> view.StatusView:
        """The whole status; raises StoreError."""
        offset_ms = self._clock.wall_ms() - self._clock.boot_ms()
        pending = len(await self._store.call(Store.outbox))
        ledger = await self._store.call(ledger_view.look)
        totals = await self._store.call(Store.totals)
        vacate = await self._store.call(Store.vacate_stats)
        return view.status(
            self._now(),
            wall_offset_ms=offset_ms,
            items_done_in_slice=self._hands.items_done_in_slice,
            pending=pending,
            ledger=ledger,
            totals=totals,
            vacate=vacate,
            refused_messages=dict(self._desk.refused),
            refused_packages=self._shelf.refused,
            counts={source.name: source.counts for source in self._sources},
            link=self._link.status(),
            confinement=self._hands.confinement,
            memory_returned_ms=self._hands.memory_returned_ms,
            catalogue=None if self._catalogue is None else self._catalogue(),
        )
