"""Keeps the catalogue: refreshes it, remembers what must not go back, and answers for the shelf and for the desk.

    start      floors from the store, then the catalogue that was believed last, verified again, whatever its age
    then       a refresh each `refresh_minutes` or so, on a thread; sooner after a failure, and none over a metered
               network unless the policy allows work there
    new one    floors rise, packages are judged again, and a lease whose package is denied now is given back at once

While nothing is believed no package is offered and no grant taken; past its expiry the catalogue takes nothing new, but
what is at work goes on, verdicts count, and so does everything that it denies. The gates, and the driver, know nothing
of all this. A failure is logged once, and so is the recovery; `driveway status` has both.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent import __version__
from agent.background_rows import BackgroundRows
from agent.catalogue_view import CatalogueView, catalogue_view
from agent.config import Config
from agent.core.events import CancelSeen
from agent.core.state import State
from agent.core.traffic import spent
from agent.errors import ConfigError, DrivewayError, FleetError, NotUnderstoodError, StoreError, TrustError
from agent.fleet.catalogue_fetch import fetch_file
from agent.fleet.channel import Channel, PausedError
from agent.fleet.objects import on_thread
from agent.log import logger
from agent.package import Package
from agent.policy_profile import Profile, configured_profile, keep_profile
from agent.ports import Clock, Emit
from agent.releases import HOME, is_on_trial, sums_sha256
from agent.stamp import stamp
from agent.store import Store, StoreThread
from agent.trust.admission import (
    NotAdmittedError,
    Standing,
    check_key,
    check_new,
    check_package,
    check_policy,
    check_release,
    check_rollback,
    take,
    trusted_keys,
)
from agent.trust.catalogue import Catalogue
from agent.trust.dsse import VerifyingKey
from agent.trust.grant import GrantClaims, check_grant, verify_order
from agent.trust.time_floor import TimeFloor
from agent.trust.version_floors import VersionFloors

if TYPE_CHECKING:
    from agent.trust.catalogue_client import CatalogueClient

TIME_ROW, FLOORS_ROW = "time_floor", "version_floors"
FIRST_RETRY_S = 30.0
LOOK_AGAIN_S = 60.0
"""How often it is looked whether the network may be used now."""
RUNNING = re.sub(r"[^0-9.].*|\.(?![0-9]).*", "", __version__)
"""This version of the agent without what a developer's build adds to it (`0.2.0.dev3+g1a2b`)."""
JITTER = 0.2
"""A fleet that came up together shall not ask together for ever."""
CLOSE_S = 2.0


class KeptTime(msgspec.Struct, frozen=True):
    """The time floor as the store remembers it, in wall milliseconds."""

    floor_ms: int


class KeptFloors(msgspec.Struct, frozen=True):
    """The downgrade floors as the store remembers them: `kind/name` to version."""

    floors: dict[str, str]


class DispatcherKeys(Mapping[str, VerifyingKey]):
    """The dispatcher keys that count now, by keyid: looked up anew each time."""

    def __init__(self, standing: Callable[[], Standing]) -> None:
        self._standing = standing

    def _now(self) -> dict[str, VerifyingKey]:
        standing, counting = self._standing(), {}
        for keyid, (epoch, key) in trusted_keys(standing).items():
            with contextlib.suppress(NotAdmittedError):
                check_key(standing, keyid, epoch)
                counting[keyid] = key
        return counting

    def __getitem__(self, keyid: str) -> VerifyingKey:
        return self._now()[keyid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


class CatalogueKeeper:
    """Use from the event loop's thread. `channel` says how a transfer goes that begins now; `on_change` is awaited
    whenever packages are to be judged anew; `profile` is the configured policy, None without one; `home` is where the
    versions of the agent are.
    """

    def __init__(
        self,
        client: CatalogueClient,
        *,
        store: StoreThread,
        clock: Clock,
        state: Callable[[], State],
        pinned: Mapping[str, VerifyingKey],
        channel: Callable[[], Channel],
        on_change: Callable[[], Awaitable[None]],
        refresh_s: float,
        profile: Profile | None = None,
        home: Path = HOME,
    ) -> None:
        self._home = home
        self._client, self._store, self._clock, self._state = client, store, clock, state
        self._channel, self._on_change, self._refresh_s, self._profile = channel, on_change, refresh_s, profile
        self._rows = BackgroundRows(store, "floor_not_kept")
        self.time_floor = TimeFloor(clock, lambda floor_ms: self._rows.keep(TIME_ROW, KeptTime(floor_ms)))
        self.floors = VersionFloors(lambda floors: self._rows.keep(FLOORS_ROW, KeptFloors(dict(floors))))
        self._standing = Standing(None, self.floors, 0, RUNNING, pinned)
        self._error, self._behind, self._failures = "", False, 0
        self._checked_wall_ms: int | None = None
        self.keys = DispatcherKeys(self.standing)

    # --- the shelf and the desk ---------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """What is judged against, now."""
        return replace(self._standing, now_ms=self.time_floor.now_ms())

    def judge(self, package: Package) -> str:
        """Why a package may not run here; empty where it may."""
        try:
            manifest = package.manifest
            check_package(self.standing(), manifest.name, package.package_sha256, manifest.version)
        except NotAdmittedError as error:
            return str(error)
        return ""

    def takes_new(self) -> bool:
        """Whether new work may be asked for."""
        try:
            check_new(self.standing())
        except NotAdmittedError:
            return False
        return True

    async def judge_release(self, version: str) -> str:
        """Why a version of the agent may not be installed here; empty where it may."""
        found = await asyncio.to_thread(sums_sha256, version, self._home)
        try:
            check_release(self.standing(), version, found)
        except NotAdmittedError as error:
            return str(error)
        return ""

    def verify(self, envelope: bytes, payload_type: str) -> bytes:
        """The payload of what a dispatcher signed; raises NotAdmittedError."""
        return verify_order(envelope, payload_type, self.standing())

    def admit(self, claims: GrantClaims, unit: str, job: str, epoch: int) -> None:
        """Raise NotAdmittedError for a grant that must not be taken."""
        lease = self._state().lease
        held = lease is not None and (lease.grant.job, lease.grant.epoch) == (job, epoch)
        check_grant(claims, unit=unit, standing=self.standing(), held=held)

    def issued(self, wall_ms: int) -> None:
        """The dispatcher has signed something at this time of its clock."""
        self.time_floor.told(wall_ms, clock_trusted=not self._state().wall.problem)

    # --- its own life -------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """What an earlier run knew; raises StoreError when the disk does not give it."""
        with contextlib.suppress(NotUnderstoodError):
            time = await self._store.call(Store.recall, TIME_ROW, KeptTime)
            self.time_floor.restore(0 if time is None else time.floor_ms)
        with contextlib.suppress(NotUnderstoodError):
            floors = await self._store.call(Store.recall, FLOORS_ROW, KeptFloors)
            self.floors.restore({} if floors is None else floors.floors)
        try:
            catalogue = await asyncio.to_thread(self._client.load)
            if catalogue is not None:
                check_rollback(catalogue, self.floors)
                await self._believe(catalogue)
        except (TrustError, StoreError) as error:
            self._failed(error)

    async def run(self, emit: Emit) -> None:
        """Refresh until cancelled."""
        while True:
            self._watch_clock()
            if not self._may_fetch():
                await asyncio.sleep(min(LOOK_AGAIN_S, self._refresh_s))
                continue
            await self._refresh(emit, self._channel())
            wait_s = self._refresh_s
            if self._failures:
                wait_s = min(wait_s, FIRST_RETRY_S * 2 ** min(self._failures - 1, 10))
            await asyncio.sleep(wait_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - spreads a fleet

    async def close(self) -> None:
        """Wait for what is being remembered, though not for a broken disk."""
        await self._rows.finished(CLOSE_S)

    def status(self) -> CatalogueView:
        """For `driveway status`."""
        catalogue, floor = self._standing.catalogue, self.time_floor
        return catalogue_view(catalogue, floor, checked_wall_ms=self._checked_wall_ms, error=self._error)

    def _may_fetch(self) -> bool:
        state = self._state()
        if spent(state.traffic, state.policy, self._clock.boot_ms(), metered=state.metered):
            return False
        return not state.metered or state.policy.metered_allowed

    async def _refresh(self, emit: Emit, channel: Channel) -> None:
        reference_ms, floors = self.time_floor.now_ms(), self.floors
        try:
            catalogue = await on_thread(
                channel.cut,
                lambda: self._client.refresh(
                    reference_ms,
                    lambda url, most_bytes: fetch_file(channel, url, most_bytes),
                    lambda found: check_rollback(found, floors),
                ),
            )
            await self._believe(catalogue)
            self._end_denied(emit)
            await self._keep_policy(catalogue)
        except PausedError:
            return  # the driver, or the owner: it is tried again in its time
        except (TrustError, StoreError, FleetError, ConfigError) as error:
            self._failed(error)
            return
        self._checked_wall_ms = self._clock.wall_ms()
        if self._error:
            logger().info("catalogue_refreshed_again")
        self._error, self._failures = "", 0

    async def _believe(self, catalogue: Catalogue) -> None:
        """From now on this is what may run here."""
        trusted = not self._state().wall.problem
        if not self.time_floor.saw(catalogue.signed_ms, clock_trusted=trusted):
            logger().warning("catalogue_from_the_future", signed_at=stamp(catalogue.signed_ms))
        take(catalogue, self.floors, RUNNING, on_trial=await asyncio.to_thread(is_on_trial, RUNNING, self._home))
        before, self._standing = self._standing.catalogue, replace(self._standing, catalogue=catalogue)
        if before != catalogue:
            versions = catalogue.versions
            logger().info("catalogue_believed", version=versions.timestamp, packages=len(catalogue.packages))
            await self._on_change()

    async def _keep_policy(self, catalogue: Catalogue) -> None:
        """Have the configured policy count from the next start on; raises NotAdmittedError, ConfigError, StoreError."""
        if self._profile is not None and catalogue.policy_bytes is not None:
            check_policy(catalogue, self.floors, self._profile.name)
            await asyncio.to_thread(keep_profile, self._profile.path, catalogue.policy_bytes)

    def _end_denied(self, emit: Emit) -> None:
        """Give a lease back whose package is denied by now."""
        lease, catalogue = self._state().lease, self._standing.catalogue
        if lease is None or catalogue is None or lease.ending is not None:
            return
        if catalogue.denies(catalogue.denied.packages, lease.grant.package_sha256):
            why = "its package is denied"
            emit(CancelSeen(at_ms=self._clock.boot_ms(), key=lease.grant.key, grace_ms=0, why=why))

    def _failed(self, error: DrivewayError) -> None:
        self._failures += 1
        if not self._error:
            logger().warning("catalogue_not_refreshed", error=error.what, hint=error.hint)
        self._error = str(error)

    def _watch_clock(self) -> None:
        """Tell once that the wall clock is behind what was signed, and once that it is not any more."""
        self.time_floor.keep()
        behind_ms = self.time_floor.behind_ms()
        if bool(behind_ms) != self._behind:
            self._behind = bool(behind_ms)
            if behind_ms:
                logger().warning("clock_behind_time_floor", behind_s=behind_ms // 1000)
            else:
                logger().info("clock_caught_up")


def build_keeper(
    config: Config,
    *,
    store: StoreThread,
    clock: Clock,
    state: Callable[[], State],
    pinned: Mapping[str, VerifyingKey],
    channel: Callable[[], Channel],
    on_change: Callable[[], Awaitable[None]],
) -> CatalogueKeeper | None:
    """The keeper of the configured catalogue, None where none is; raises ConfigError."""
    wanted = config.trust.catalogue
    if wanted is None:
        return None
    try:
        from agent.trust.catalogue_client import CatalogueClient  # noqa: PLC0415 - only where it is configured
        from agent.trust.catalogue_store import CatalogueStore  # noqa: PLC0415 - likewise
    except ImportError as error:
        what = f"trust.catalogue needs python-tuf: {error}"
        raise ConfigError(what, hint="install driveway-agent[tuf]") from error
    path = config.path(wanted.root)
    try:
        root = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"trust.catalogue.root: cannot read {path}: {error.strerror}") from error
    folder = CatalogueStore(config.path(config.state_dir) / "catalogue")
    return CatalogueKeeper(
        CatalogueClient(root, wanted.url, folder, policy=wanted.policy),
        store=store,
        clock=clock,
        state=state,
        pinned=pinned,
        channel=channel,
        on_change=on_change,
        refresh_s=60 * wanted.refresh_minutes,
        profile=configured_profile(config),
    )
