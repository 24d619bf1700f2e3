"""The owner's word: pause, finish, consent and standing wishes; taken from the control socket and never lost.

Each is one row of the store, so that a restart or a reboot changes nothing of what the owner said. What lets work begin
(resume, consent, wishes) is written before it counts. What stops it (pause, finish, consent taken back) counts first,
and is written then: no disk, full or hung, comes between the owner and the end of the work. Where it could not be
written, the owner is told so, and it holds until the daemon ends.

A pause counts boot time, which does not jump; a reboot begins that anew, so the row also names the end by wall
time, which counts once the clock can be trusted. Was the clock not to be trusted when the pause was said, its wall time
means nothing, and a reboot lets the pause begin anew: it may last too long, never too short.

Standing wishes (schedule, price floor, classes of work) stand in place of the configuration's, one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from agent.control import LONGEST_PAUSE_MS, WISHES, ControlRequest, Pause, Wishes
from agent.core.events import ConsentSeen, OwnerMode, OwnerSaid, OwnerSet
from agent.core.policy import Policy, Window
from agent.core.state import State
from agent.core.world import Owner
from agent.errors import DrivewayError, StoreError
from agent.ports import Clock, Emit
from agent.stamp import stamp
from agent.store import Store, StoreThread
from agent.view import pause_until

SAID_ROW, CONSENT_ROW, WISHES_ROW = "owner", "consent", "wishes"
WRITE_S = 2.0
"""A disk that takes longer hangs; within this the owner hears of it, and the next word is taken."""


class Said(msgspec.Struct, frozen=True):
    """What the owner said last, as it is remembered. `for_ms` is how long the pause was to last from then.

    `until_ms` is boot time of the boot `boot`; `until_wall_ms` is None where the clock could not be trusted then.
    """

    mode: OwnerMode
    boot: str
    until_ms: int | None = None
    until_wall_ms: int | None = None
    for_ms: int | None = None

    def after_restart(self, boot: str, now_ms: int) -> Said:
        """The same word, as it counts now: boot times of another boot say nothing."""
        if boot and boot == self.boot:
            return self
        again_ms = None if self.for_ms is None or self.until_wall_ms is not None else now_ms + self.for_ms
        return msgspec.structs.replace(self, boot=boot, until_ms=again_ms)


class Consent(msgspec.Struct, frozen=True):
    """The version of the terms that the owner agreed to (0: withdrawn), and when, by the clock as it was."""

    version: int
    at_wall_ms: int


class ConsentView(msgspec.Struct, frozen=True):
    """What the policy asks for (0: nothing) and what the owner gave (0: nothing)."""

    required_version: int
    given_version: int
    given_at: str | None


class WishView(msgspec.Struct, frozen=True):
    """One standing wish in force, and whose it is: `owner` or `configuration`."""

    value: tuple[Window | str, ...] | float
    source: str


class OwnerView(msgspec.Struct, frozen=True):
    """`driveway owner`. `until` is when a pause ends (RFC 3339, UTC), None for one without end.

    `clock_problem` says why the wall clock cannot be trusted now, empty when it can. Windows are meant in `time_zone`.
    """

    mode: str
    until: str | None
    clock_problem: str
    consent: ConsentView
    schedule: WishView
    price_floor_per_kwh: WishView
    classes: WishView
    time_zone: str
    currency: str


class OwnerDesk:
    """Takes the owner's word and shows it; `policy` is the configuration's, under the wishes."""

    def __init__(
        self, *, state: Callable[[], State], emit: Emit, clock: Clock, store: StoreThread, boot: str, policy: Policy
    ) -> None:
        self._state, self._emit, self._clock, self._store = state, emit, clock, store
        self._boot, self._policy = boot, policy
        self._wishes = Wishes()
        self._consent: Consent | None = None
        self._one_by_one = asyncio.Lock()

    async def restore(self) -> tuple[Owner, OwnerSet]:
        """What an earlier run was told; raises StoreError when that cannot be read."""
        now_ms = self._clock.boot_ms()
        said = await self._store.call(Store.recall, SAID_ROW, Said)
        self._consent = await self._store.call(Store.recall, CONSENT_ROW, Consent)
        wishes = await self._store.call(Store.recall, WISHES_ROW, Wishes)
        self._wishes = Wishes() if wishes is None else wishes
        version = 0 if self._consent is None else self._consent.version
        if said is None:
            return Owner(consent_version=version), self._set()
        now_said = said.after_restart(self._boot, now_ms)
        if now_said != said:
            await self._store.call(Store.remember, SAID_ROW, now_said)
        return Owner(now_said.mode, now_said.until_ms, now_said.until_wall_ms, version), self._set()

    async def answer(self, request: ControlRequest) -> OwnerView:
        """Do what the owner asks, and show what holds then; raises DrivewayError for what cannot be.

        A StoreError of a word that stops the work is about its being remembered alone: the work is stopped.
        """
        async with self._one_by_one:
            match request.verb:
                case "pause":
                    await self._pause(request.pause)
                case "resume":
                    await self._say(Said(OwnerMode.AUTO, self._boot))
                case "finish":
                    await self._say(Said(OwnerMode.FINISH, self._boot))
                case "consent_accept" | "consent_withdraw":
                    await self._agree(request.version if request.verb == "consent_accept" else 0)
                case "owner_set":
                    await self._wish(self._wishes.updated(request.wishes))
                case "owner_clear":
                    await self._wish(self._wishes.without(request.clear or WISHES))
                case _:
                    pass
        return self.view()

    async def _pause(self, pause: Pause) -> None:
        now_ms, wall_ms = self._clock.boot_ms(), self._clock.wall_ms()
        for_ms = pause.for_ms
        if pause.until_wall_ms is not None:
            if for_ms is not None:
                raise DrivewayError("a pause has one end: for how long, or until when", hint="give one of the two")
            for_ms = pause.until_wall_ms - wall_ms
        if for_ms is None:
            await self._say(Said(OwnerMode.PAUSED, self._boot))
            return
        if for_ms <= 0:
            raise DrivewayError(f"{stamp(wall_ms + for_ms)} is over already", hint="give a time to come")
        if for_ms > LONGEST_PAUSE_MS:
            raise DrivewayError("a pause of more than a year", hint="leave out the end: it lasts until `resume`")
        trusted = not self._state().wall.problem
        ends_wall_ms = wall_ms + for_ms if trusted else None
        await self._say(Said(OwnerMode.PAUSED, self._boot, now_ms + for_ms, ends_wall_ms, for_ms))

    async def _say(self, said: Said) -> None:
        at_ms = self._clock.boot_ms()
        event = OwnerSaid(at_ms=at_ms, mode=said.mode, until_ms=said.until_ms, until_wall_ms=said.until_wall_ms)
        if said.mode is OwnerMode.AUTO:
            await _in_time(self._store.call(Store.forget, SAID_ROW))
            self._emit(event)
        else:
            self._emit(event)
            await _after_the_fact(self._store.call(Store.remember, SAID_ROW, said))

    async def _agree(self, version: int) -> None:
        wanted = self._policy.consent_required_version
        if version and version != wanted:
            said = f"the terms in force are version {wanted}" if wanted else "the policy asks for no consent"
            raise DrivewayError(f"version {version} cannot be agreed to: {said}", hint="see `driveway consent`")
        consent = Consent(version, self._clock.wall_ms())
        if version:
            await _in_time(self._store.call(Store.remember, CONSENT_ROW, consent))
        self._consent = consent
        self._emit(ConsentSeen(at_ms=self._clock.boot_ms(), version=version))
        if not version:
            await _after_the_fact(self._store.call(Store.remember, CONSENT_ROW, consent))

    async def _wish(self, wishes: Wishes) -> None:
        await _in_time(self._store.call(Store.remember, WISHES_ROW, wishes))
        self._wishes = wishes
        self._emit(self._set())

    def _set(self) -> OwnerSet:
        """The wishes in force: the owner's, and the configuration's where the owner has none."""
        wishes, policy = self._wishes, self._policy
        floor = wishes.price_floor_micro_per_kwh
        return OwnerSet(
            at_ms=self._clock.boot_ms(),
            schedule=policy.schedule if wishes.schedule is None else wishes.schedule,
            price_floor_micro_per_kwh=policy.price_floor_micro_per_kwh if floor is None else floor,
            workload_classes=policy.workload_classes if wishes.classes is None else wishes.classes,
        )

    def view(self) -> OwnerView:
        """What the owner said, and what is in force."""
        state, wishes, consent = self._state(), self._wishes, self._consent
        policy = state.policy
        return OwnerView(
            mode=state.owner.mode.value,
            until=pause_until(state.owner, self._clock.wall_ms() - self._clock.boot_ms()),
            clock_problem=state.wall.problem,
            consent=ConsentView(
                policy.consent_required_version,
                state.owner.consent_version,
                None if consent is None else stamp(consent.at_wall_ms),
            ),
            schedule=WishView(policy.schedule, _source(wishes.schedule)),
            price_floor_per_kwh=WishView(
                policy.price_floor_micro_per_kwh / 1e6, _source(wishes.price_floor_micro_per_kwh)
            ),
            classes=WishView(policy.workload_classes, _source(wishes.classes)),
            time_zone=policy.time_zone,
            currency=policy.currency,
        )


def end_pause(store: Store, until_ms: int | None, until_wall_ms: int | None) -> None:
    """Forget a pause that has run out, unless the owner has said something else since; on the store's thread."""
    said = store.recall(SAID_ROW, Said)
    if said is not None and (said.until_ms, said.until_wall_ms) == (until_ms, until_wall_ms):
        store.forget(SAID_ROW)


async def _in_time(write: Awaitable[None]) -> None:
    """Wait for the disk; raises StoreError when it refuses, or hangs: then it may or may not take the write later."""
    try:
        await asyncio.wait_for(write, WRITE_S)
    except TimeoutError:
        raise StoreError("the disk does not answer", hint="look at the disk, then say it again") from None


async def _after_the_fact(write: Awaitable[None]) -> None:
    """Write down what counts already; raises StoreError, which says that it does."""
    try:
        await _in_time(write)
    except StoreError as error:
        what = f"this counts now, but only until the agent ends, for it could not be written down: {error.what}"
        raise StoreError(what, hint=error.hint or "look at the disk, then say it again") from error


def _source(wish: object) -> str:
    return "configuration" if wish is None else "owner"
