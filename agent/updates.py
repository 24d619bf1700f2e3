"""Hears of updates from the program that installs them, says when one may be, and takes the owner's word on it.

The program (`agent.update`, root) says on the control socket, every few seconds, that a version waits. Whether it may
be installed is decided by the catalogue, where there is one, and by `agent.core.update_wait`; that nothing new may be
begun reaches the core by `agent.host`, like every other sight of the computer's system. An update of which nothing is
heard for `FORGOTTEN_S` counts no more: the program has ended, or the version is gone.

The owner's word is one row of the store, about one version; a newer one begins anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from agent.core.state import State
from agent.core.update_wait import Told, Waiting, latest_ms, waits_for
from agent.errors import DrivewayError, NotUnderstoodError
from agent.log import logger
from agent.ports import Clock
from agent.stamp import stamp
from agent.store import Store, StoreThread
from agent.trust.version_floors import VERSION

Judge = Callable[[str], Awaitable[str]]
"""Why a version may not be installed here, in the operator's word; empty where it may."""

ROW = "update"
FORGOTTEN_S = 600.0


class UpdateAnswer(msgspec.Struct, frozen=True):
    """What the program that installs updates is told: `why` not, and the lease at work (`job/epoch`, or empty)."""

    ready: bool
    why: str
    lease: str


class UpdateView(msgspec.Struct, frozen=True):
    """`driveway update`: the version that waits (empty: none), what it waits for, and the owner's word on it.

    `deferred_until` and `latest` (how far it may be deferred) are RFC 3339 in UTC, None where there is nothing to tell.
    """

    version: str
    ready: bool
    why: str
    at_once: bool
    deferred_until: str | None
    latest: str | None


class Updates:
    """What is known of an update that waits; the owner's word of an earlier run is read when it is heard of again."""

    def __init__(
        self, *, state: Callable[[], State], clock: Clock, store: StoreThread, judge: Judge | None = None
    ) -> None:
        self._state, self._clock, self._store, self._judge = state, clock, store, judge
        self._refused = ""
        self._told: Told | None = None
        self._heard_ms: int | None = None

    def holds_work(self) -> bool:
        """Whether nothing new may be begun, for an update that waits for car and work, and for nobody's word."""
        told = self._waiting
        return told is not None and not self._waits_for(told).for_word

    async def hear(self, version: str) -> UpdateAnswer:
        """A version waits; may it be installed? Raises DrivewayError for what is no version."""
        if not VERSION.fullmatch(version):
            raise DrivewayError(f"{version[:64]!r} is no version", hint="numbers with dots, as in 1.2.3")
        told = self._told if self._told is not None else await self._kept()
        if told is None or told.version != version:
            told = Told(version, self._clock.wall_ms())
            logger().info("update_waits", version=version)
            await self._keep(told)
        refused = "" if self._judge is None else await self._judge(version)
        if refused and refused != self._refused:
            logger().warning("update_not_admitted", version=version, detail=refused)
        self._told, self._heard_ms, self._refused = told, self._clock.boot_ms(), refused
        waiting, lease = self._waits_for(told), self._state().lease
        return UpdateAnswer(not waiting.why, waiting.why, "" if lease is None else f"{lease.key.job}/{lease.key.epoch}")

    async def defer(self, for_ms: int) -> UpdateView:
        """Not before so long from now, within what the policy allows; raises DrivewayError."""
        told, wall_ms = self._must_wait(), self._clock.wall_ms()
        latest = latest_ms(self._state(), told)
        if wall_ms + for_ms > latest:
            hours = self._state().policy.update_defer_max_h
            raise DrivewayError(
                f"{told.version} may be deferred until {stamp(latest)} at most",
                hint=f"it was first told of at {stamp(told.first_wall_ms)}, and policy.update_defer_max_h is {hours:g}",
            )
        await self._keep(msgspec.structs.replace(told, until_wall_ms=wall_ms + for_ms, at_once=False))
        return self.view()

    async def now(self) -> UpdateView:
        """As soon as car and work let it, whatever the owner wished before; raises DrivewayError."""
        await self._keep(msgspec.structs.replace(self._must_wait(), until_wall_ms=0, at_once=True))
        return self.view()

    def view(self) -> UpdateView:
        """What waits, and why."""
        told = self._waiting
        if told is None:
            return UpdateView("", ready=False, why="", at_once=False, deferred_until=None, latest=None)
        waiting = self._waits_for(told)
        until_ms = told.until_wall_ms if self._clock.wall_ms() < told.until_wall_ms else None
        return UpdateView(
            told.version,
            ready=not waiting.why,
            why=waiting.why,
            at_once=told.at_once,
            deferred_until=None if until_ms is None else stamp(until_ms),
            latest=stamp(latest_ms(self._state(), told)),
        )

    @property
    def _waiting(self) -> Told | None:
        """The version that waits; None where none was heard of lately."""
        heard_ms = self._heard_ms
        if heard_ms is None or self._clock.boot_ms() - heard_ms > FORGOTTEN_S * 1000:
            return None
        return self._told

    def _must_wait(self) -> Told:
        told = self._waiting
        if told is None:
            raise DrivewayError("no update waits", hint="`driveway update` shows one when there is one")
        return told

    async def _kept(self) -> Told | None:
        """What an earlier run was told; another version's word that is not understood is none."""
        with contextlib.suppress(NotUnderstoodError):
            return await self._store.call(Store.recall, ROW, Told)
        return None

    def _waits_for(self, told: Told) -> Waiting:
        if self._refused:
            return Waiting(self._refused, for_word=True)
        return waits_for(self._state(), told, self._clock.wall_ms())

    async def _keep(self, told: Told) -> None:
        await self._store.call(Store.remember, ROW, told)
        self._told = told
