"""The keeper between a real repository on a web server, a real store, a shelf with packages and the desk."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import catalogue_keeper
from agent.catalogue_keeper import FLOORS_ROW, TIME_ROW, CatalogueKeeper, KeptFloors, KeptTime
from agent.config import load
from agent.core.events import CancelSeen, EventType, GrantSeen, VerdictSeen
from agent.core.lease import Lease
from agent.core.model import Verdict
from agent.core.policy import Policy
from agent.core.state import State, initial
from agent.errors import ConfigError
from agent.fleet import messages
from agent.fleet.channel import Channel, Web
from agent.fleet.desk import Desk
from agent.fleet.orders import Orders
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.policy_profile import Profile, configured_profile, keep_profile, with_profile
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.catalogue_client import CatalogueClient
from agent.trust.catalogue_store import CatalogueStore
from agent.trust.keys import FileSigner
from agent.trust.version_floors import Floored
from hil.catalogue.command import add_dispatcher, add_package, deny, server_of
from hil.catalogue.repository import Repository
from tests.core.world import grant as core_grant
from tests.fleet.test_desk import GRANT_TOPIC, JOB, UNIT, VERDICT_TOPIC, grant
from tests.inference.test_shelf import put
from tests.test_config import GOOD

WALL_MS = 1_800_000_000_000


@dataclass
class Clock:
    """Boot and wall time that a test moves."""

    boot: int = 1_000
    wall: int = WALL_MS

    def boot_ms(self) -> int:
        return self.boot

    def wall_ms(self) -> int:
        return self.wall


@dataclass
class Operator:
    """A catalogue on a web server of this machine."""

    folder: Path
    clock: Clock
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.repository = Repository.create(self.folder, now=self._now)
        self.server = server_of(self.repository, 0)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.clock.wall // 1000, dt.UTC)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Unit:
    """The parts of one car that a catalogue speaks to, on one state."""

    def __init__(self, folder: Path, operator: Operator, pinned: FileSigner, clock: Clock) -> None:
        self.clock, self.events = clock, list[EventType]()
        self.state: State = initial("one", Policy(), 0)
        self.store = StoreThread(folder / "driveway.db")
        self.profile = Profile("family", folder / "catalogue" / "family.toml")
        root = (operator.repository.metadata / "1.root.json").read_bytes()
        client = CatalogueClient(root, operator.url, CatalogueStore(folder / "catalogue"), policy="family")
        self.keeper = CatalogueKeeper(
            client,
            store=self.store,
            clock=clock,
            state=lambda: self.state,
            pinned={pinned.keyid: pinned.public_key()},
            channel=lambda: Channel(Web(allow_loopback_http=True)),
            on_change=self._judge_again,
            refresh_s=0.01,
            profile=self.profile,
            home=folder / "versions",
        )
        self.shelf = Shelf(folder / "packages", {}, self.keeper.judge, self.keeper.takes_new)
        self.plans = PlannedShelf(self.shelf, None, emit=self.events.append, clock=clock, memory_mb=256)
        orders = Orders(self.store, clock, "b00t", lambda: True, on_issued=self.keeper.issued)
        self.desk = Desk(
            unit=UNIT,
            cell="00",
            run="b00t",
            dispatcher_keys=self.keeper.keys,
            orders=orders,
            emit=self.events.append,
            clock=clock,
            gate=self.keeper,
        )

    async def _judge_again(self) -> None:
        self.shelf.judge_again()
        await self.plans.refresh()

    async def refreshed(self, until: Callable[[], bool]) -> None:
        """Let the keeper run until something is so."""
        task = asyncio.create_task(self.keeper.run(self.events.append))
        try:
            async with asyncio.timeout(20):
                while not until():  # noqa: ASYNC110 - it is the keeper's own clock that is waited for
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def believes(self, timestamp: int) -> None:
        await self.refreshed(lambda: self.keeper.status().timestamp == timestamp)


@contextlib.asynccontextmanager
async def started(unit: Unit) -> AsyncIterator[Unit]:
    await unit.store.open()
    try:
        await unit.keeper.restore()
        yield unit
    finally:
        await unit.keeper.close()
        await unit.store.close()


Story = Callable[[Unit], Coroutine[Any, Any, None]]


@dataclass
class Rig:
    folder: Path
    operator: Operator
    dispatcher: FileSigner
    pinned: FileSigner
    clock: Clock

    def play(self, story: Story) -> Unit:
        """One run of a car, from its start to its end; the next finds what this one left."""
        unit = Unit(self.folder / "car", self.operator, self.pinned, self.clock)

        async def whole() -> None:
            async with started(unit):
                await story(unit)

        asyncio.run(whole())
        return unit

    def publish(self) -> int:
        """The version of the timestamp that cars see now."""
        self.operator.repository.publish()
        return int(self.operator.repository.load("timestamp").signed.version)


@pytest.fixture
def rig(tmp_path: Path, dispatcher_signer: FileSigner, stranger_signer: FileSigner) -> Iterator[Rig]:
    (tmp_path / "car").mkdir()
    clock = Clock()
    operator = Operator(tmp_path / "operator", clock)
    rig = Rig(tmp_path, operator, dispatcher_signer, stranger_signer, clock)
    packages = tmp_path / "car" / "packages"
    for name in ("ocr", "detector"):
        put(packages, name)
    add_package(operator.repository, packages / "ocr")
    add_dispatcher(operator.repository, "d1", dispatcher_signer.public_key_pem(), 1)
    rig.publish()
    yield rig
    operator.close()


def job_for(unit: Unit, name: str = "ocr") -> messages.JobGrant:
    """A job for the package of this name, whether it is admitted or not."""
    everything = [*unit.shelf.packages.values(), *unit.shelf._barred.values()]
    (package,) = (one for one in everything if one.manifest.name == name)
    return msgspec.structs.replace(JOB, package=messages.PackageRef(name=name, sha256=package.package_sha256))


def granted(unit: Unit, signer: FileSigner, name: str = "ocr") -> bool:
    """Whether a grant for the package becomes an event."""
    before = len(unit.events)
    unit.desk.receive(GRANT_TOPIC, grant(signer, job=job_for(unit, name)))
    return any(isinstance(event, GrantSeen) for event in unit.events[before:])


# --- what may run -----------------------------------------------------------------------------------------------


def test_nothing_may_run_before_the_first_catalogue(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        assert unit.plans.offered == ()
        assert "no catalogue is known yet" in unit.shelf.refused["ocr"]
        assert not granted(unit, rig.pinned)
        assert unit.desk.refused["grant: catalogue_missing"] == 1
        assert unit.keeper.status().timestamp is None

    rig.play(story)


def test_what_is_listed_is_offered_and_granted_and_nothing_else(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        assert [one.manifest.name for one in unit.shelf.packages.values()] == ["ocr"]
        assert len(unit.plans.offered) == 1
        assert "is not in the catalogue" in unit.shelf.refused["detector"]
        assert granted(unit, rig.dispatcher)
        assert not granted(unit, rig.dispatcher, "detector")
        assert not granted(unit, rig.pinned)
        assert unit.desk.refused == {"grant: package_unlisted": 1, "grant: key_unknown": 1}

    rig.play(story)


def test_a_package_that_is_listed_later_is_offered_then(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        add_package(rig.operator.repository, rig.folder / "car" / "packages" / "detector")
        await unit.believes(rig.publish())
        assert len(unit.plans.offered) == 2
        assert unit.shelf.refused == {}

    rig.play(story)


def test_the_next_start_knows_it_without_a_network(rig: Rig) -> None:
    async def learns(unit: Unit) -> None:
        await unit.believes(2)

    async def offline(unit: Unit) -> None:
        assert len(unit.plans.offered) == 1
        assert granted(unit, rig.dispatcher)
        assert unit.keeper.status().checked_at is None

    rig.play(learns)
    rig.play(offline)


def test_past_its_expiry_nothing_new_is_taken_and_the_rest_goes_on(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        rig.clock.wall += 15 * 86_400_000
        assert unit.plans.offered == ()
        assert not granted(unit, rig.dispatcher)
        assert unit.desk.refused == {"grant: catalogue_expired": 1}
        assert unit.keeper.status().expired
        package = job_for(unit).package.sha256
        assert unit.shelf.find(package).package_sha256 == package  # a lease that is held loads it again
        verdict = messages.VerdictMessage(rid="r", unit=UNIT, job="job1", epoch=3, verdict=Verdict.SETTLED)
        unit.desk.receive(VERDICT_TOPIC, dsse.sign(messages.VERDICT_TYPE, messages.encode(verdict), rig.dispatcher))
        assert isinstance(unit.events[-1], VerdictSeen)
        await unit.believes(rig.publish())
        assert granted(unit, rig.dispatcher)

    rig.play(story)


def test_a_clock_that_is_set_back_brings_nothing_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The car has seen a time that was signed after the old catalogue had expired."""

    async def learns(unit: Unit) -> None:
        await unit.believes(2)
        rig.clock.wall += 20 * 86_400_000
        unit.keeper.issued(rig.clock.wall)

    async def set_back(unit: Unit) -> None:
        assert unit.plans.offered == ()
        with caplog.at_level(logging.WARNING):
            await unit.refreshed(lambda: bool(unit.keeper.status().error))
        assert "expired" in unit.keeper.status().error
        assert unit.keeper.status().clock_behind_s == 20 * 86_400

    rig.play(learns)
    rig.clock.wall -= 20 * 86_400_000
    rig.play(set_back)


def test_the_floors_are_remembered(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        await unit.keeper.close()
        time = await unit.store.call(Store.recall, TIME_ROW, KeptTime)
        floors = await unit.store.call(Store.recall, FLOORS_ROW, KeptFloors)
        assert time is not None
        assert time.floor_ms == WALL_MS
        assert floors is not None
        assert floors.floors == {"package/ocr": "1"}

    rig.play(story)


# --- releases of the agent ------------------------------------------------------------------------------------------


def stage(rig: Rig, version: str, sums: str) -> bytes:
    """A version on the disk, as the package stages it: the list of its files."""
    folder = rig.folder / "car" / "versions" / version
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS").write_text(sums)
    return sums.encode()


def test_the_catalogue_says_which_version_of_the_agent_may_be_installed(rig: Rig) -> None:
    named, other = stage(rig, "1.1.0", "a\n"), stage(rig, "1.2.0", "b\n")
    assert named != other

    async def story(unit: Unit) -> None:
        judge = unit.keeper.judge_release
        assert await judge("1.1.0") == "", "before there is a catalogue, whoever brought it has signed it"
        await unit.believes(2)
        assert await judge("1.1.0") == "", "it says nothing of releases"
        rig.operator.repository.put("releases/driveway-agent/1.1.0/SHA256SUMS", named)
        rig.operator.repository.put("releases/driveway-agent/1.2.0/SHA256SUMS", named)
        await unit.believes(rig.publish())
        assert await judge("1.1.0") == ""
        assert "not those of the catalogue" in await judge("1.2.0")
        assert "is not in the catalogue" in await judge("1.3.0")
        deny(rig.operator.repository, "agents", "1.1.0", "it loses slices")
        await unit.believes(rig.publish())
        assert "is denied: it loses slices" in await judge("1.1.0")

    rig.play(story)


def test_a_version_on_trial_leaves_the_way_back_open(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.operator.repository.put("releases/driveway-agent/1.1.0/SHA256SUMS", b"")
    rig.publish()
    good = rig.folder / "car" / "versions" / "good"
    good.parent.mkdir()
    good.symlink_to("1.0.0")
    monkeypatch.setattr(catalogue_keeper, "RUNNING", "1.1.0")

    async def on_trial(unit: Unit) -> None:
        await unit.believes(3)
        assert unit.keeper.floors.floor(Floored.AGENT) == "0"

    rig.play(on_trial)
    good.unlink()
    good.symlink_to("1.1.0")

    async def proven(unit: Unit) -> None:
        await unit.believes(3)
        assert unit.keeper.floors.floor(Floored.AGENT) == "1.1.0"
        assert "is older than 1.1.0, which ran here" in await unit.keeper.judge_release("1.0.0")

    rig.play(proven)


# --- what is denied ---------------------------------------------------------------------------------------------


def test_a_package_that_is_denied_is_offered_no_more(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        deny(rig.operator.repository, "packages", job_for(unit).package.sha256, "it leaks")
        await unit.believes(rig.publish())
        assert unit.plans.offered == ()
        assert "is denied: it leaks" in unit.shelf.refused["ocr"]
        assert not granted(unit, rig.dispatcher)
        assert unit.desk.refused == {"grant: package_denied": 1}

    rig.play(story)


def test_a_lease_whose_package_is_denied_is_given_back(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        sha256 = job_for(unit).package.sha256
        held = Lease(msgspec.structs.replace(core_grant(1), package_sha256=sha256), expires_ms=60_000)
        unit.state = msgspec.structs.replace(unit.state, lease=held)
        deny(rig.operator.repository, "packages", sha256, "")
        rig.publish()
        await unit.refreshed(lambda: any(isinstance(event, CancelSeen) for event in unit.events))
        (cancel,) = {event for event in unit.events if isinstance(event, CancelSeen)}
        assert (cancel.grace_ms, cancel.why) == (0, "its package is denied")

    rig.play(story)


def test_a_dispatcher_that_is_denied_commands_nothing(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        await unit.believes(2)
        assert set(unit.keeper.keys) == {rig.dispatcher.keyid}
        deny(rig.operator.repository, "dispatchers", rig.dispatcher.keyid, "stolen")
        await unit.believes(rig.publish())
        assert set(unit.keeper.keys) == set()
        assert not granted(unit, rig.dispatcher)
        assert unit.desk.refused == {"grant: key_denied": 1}

    rig.play(story)


def test_a_deny_list_from_before_is_refused_and_what_is_believed_stands(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        deny(rig.operator.repository, "packages", "ab" * 32, "")
        deny(rig.operator.repository, "packages", "cd" * 32, "")
        version = rig.publish()
        await unit.believes(version)
        rig.operator.repository.withdraw("deny.json")
        deny(rig.operator.repository, "agents", "0.0.1", "")
        rig.publish()
        await unit.refreshed(lambda: "rollback" in unit.keeper.status().error)
        assert (unit.keeper.status().deny_number, unit.keeper.status().timestamp) == (2, version)

    rig.play(story)
    rig.play(lambda unit: _still(unit, deny_number=2))


async def _still(unit: Unit, deny_number: int) -> None:
    assert unit.keeper.status().deny_number == deny_number


# --- when it is fetched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
def test_over_a_metered_network_only_where_the_policy_allows_work(rig: Rig, allowed: bool) -> None:
    policy = Policy(metered_allowed=allowed)

    async def story(unit: Unit) -> None:
        unit.state = msgspec.structs.replace(unit.state, metered=True, policy=policy)
        if allowed:
            await unit.believes(2)
        else:
            rounds = iter(range(20))
            await unit.refreshed(lambda: next(rounds, None) is None)
            assert unit.keeper.status().checked_at is None

    rig.play(story)


def test_a_failure_is_told_once_and_so_is_the_recovery(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    timestamp = rig.operator.repository.metadata / "timestamp.json"
    body = timestamp.read_bytes()

    async def story(unit: Unit) -> None:
        await unit.believes(2)
        timestamp.write_bytes(b"no metadata")
        await unit.refreshed(lambda: unit.keeper._failures >= 1)
        assert "malformed" in unit.keeper.status().error
        unit.keeper._failures = 0  # not to wait for the next attempt as long as a car does
        timestamp.write_bytes(body)
        await unit.refreshed(lambda: not unit.keeper.status().error)

    rig.play(story)


# --- the policy that it brings ------------------------------------------------------------------------------------


def test_the_configured_policy_is_kept_for_the_next_start(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        rig.operator.repository.put("policies/family/1.0/policy.toml", b"reserve_percent = 60\n")
        rig.publish()
        await unit.refreshed(unit.profile.path.exists)
        assert unit.profile.path.read_bytes() == b"reserve_percent = 60\n"

    rig.play(story)


def test_a_policy_that_contradicts_itself_is_never_kept(rig: Rig) -> None:
    async def story(unit: Unit) -> None:
        rig.operator.repository.put("policies/family/1.0/policy.toml", b"die_target_c = 99\ndie_limit_c = 90\n")
        version = rig.publish()
        await unit.refreshed(lambda: "die_target_c" in unit.keeper.status().error)
        assert unit.keeper.status().timestamp == version
        assert not unit.profile.path.exists()

    rig.play(story)


def test_a_kept_policy_replaces_the_configured_one(tmp_path: Path) -> None:
    path = tmp_path / "driveway.toml"
    path.write_text(GOOD + '\n[trust.catalogue]\nroot = "r.json"\nurl = "https://c.example/"\npolicy = "family"\n')
    config = load(path)
    profile = configured_profile(config)
    assert profile is not None
    assert with_profile(config) == config
    profile.path.parent.mkdir(parents=True)
    keep_profile(profile.path, b"reserve_percent = 61\n")
    assert with_profile(config).policy == Policy(reserve_percent=61)
    profile.path.write_text("nonsense = 1\n")
    assert with_profile(config) == config
    with pytest.raises(ConfigError):
        keep_profile(profile.path, b"reserve_percent = 161\n")
