"""The whole daemon and its unit's key: one whose hardware is away, and one that hands over to the next at work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from agent import notary, selftest
from agent.cli import exits
from agent.cli.client import UnreachableError, ask
from agent.cli.main import main
from agent.config import Config
from agent.daemon import Daemon
from agent.identity import establish
from agent.key_config import KeySection, TpmSection
from agent.store import Store
from agent.trust import dsse
from agent.trust.checkpoint import verify_checkpoint
from agent.trust.hardware import HardwareSigner
from agent.trust.keys import load_public_key
from agent.trust.sealing_key import verify_sealing_key
from agent.trust.session import verify_session
from hil.emulated_keys import EmulatedTpm
from tests.daemon.test_shutdown import configured
from tests.test_identity import CODE, Office
from tests.trust.hardware_keys import needs_swtpm

PATIENCE_S = 60.0
POLL_S = 0.05
UNIT = "unit-1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is tried again every minute is tried again at once."""
    monkeypatch.setattr(selftest, "RETRY_S", 0.2)
    monkeypatch.setattr(notary, "RETRY_S", (0.2, 0.2))
    monkeypatch.setattr("agent.trust.hardware.BACKOFF_S", (0.05, 0.1))
    yield
    structlog.reset_defaults()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "dispatcher")
    yield office
    office.close()


@pytest.fixture
def config(tmp_path: Path, office: Office) -> Config:
    """Of a car that is not there, enrolled with a dispatcher that is."""
    config = configured(tmp_path)
    (tmp_path / "dispatcher.pub").write_text(office.desk.key.public_key_pem())
    fleet = msgspec.structs.replace(
        config.fleet,
        dispatcher_key="dispatcher.pub",
        enrol_url=f"{office.web.url}/enrol",
        enrol_code=CODE,
        allow_loopback_http=True,
    )
    return msgspec.structs.replace(config, fleet=fleet)


Story = Callable[[Daemon, "Car"], Awaitable[None]]


class Car:
    """What a technician sees of the daemon, over its control socket."""

    def __init__(self, config: Config) -> None:
        self.socket = config.path(config.control_socket)

    async def ask(self, verb: str) -> Any:
        return await asyncio.to_thread(ask, self.socket, verb)

    async def until(self, verb: str, reached: Callable[[Any], bool]) -> Any:
        """The answer, once it is as it should be."""
        return await asyncio.to_thread(self._until, verb, reached)

    def _until(self, verb: str, reached: Callable[[Any], bool]) -> Any:
        deadline_s, said = time.monotonic() + PATIENCE_S, None
        while time.monotonic() < deadline_s:
            with contextlib.suppress(UnreachableError):  # it may not listen yet
                said = ask(self.socket, verb)
                if reached(said):
                    return said
            time.sleep(POLL_S)
        raise AssertionError(f"waited in vain; {verb} says {said}")


def self_test_of(reasons: list[dict[str, Any]]) -> str:
    """What the self-test found, as `why` says it; empty when it has passed."""
    return " ".join(one["text"] for one in reasons if one["code"] == "self_test_failed")


def lived(config: Config, story: Story) -> None:
    """Run the daemon until the story is told; it has to end by itself then."""

    async def run() -> None:
        daemon = Daemon(config, await establish(config))
        serving = asyncio.ensure_future(daemon.run())
        car = Car(config)
        try:
            await car.until("why", bool)
            await story(daemon, car)
        finally:
            daemon.stop()
            async with asyncio.timeout(PATIENCE_S):
                await serving

    asyncio.run(run())


def key_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "unit-key"]


@needs_swtpm
def test_a_daemon_without_its_tpm_starts_says_so_and_goes_on_when_it_is_back(
    config: Config, office: Office, tmp_path: Path
) -> None:
    others = set(key_threads())
    tpm = EmulatedTpm(tmp_path / "emulated")
    key = KeySection(backend="tpm", tpm=TpmSection(device=tpm.address, limit_s=1.0))
    config = msgspec.structs.replace(config, trust=msgspec.structs.replace(config.trust, key=key))
    with tpm:
        asyncio.run(establish(config)).key.close()
    said = office.asked

    async def story(daemon: Daemon, car: Car) -> None:
        why = self_test_of(await car.until("why", lambda reasons: "absent" in self_test_of(reasons)))
        assert "the signing key (ftpm) is absent: no TPM answers on " in why
        assert "bring its device back" in why
        status = await car.ask("status")
        assert status["gate"] != "open", "so no work is asked for"
        keys = await car.ask("keys")
        assert (keys["state"], keys["keyid"]) == ("absent", daemon.parts.keys.key.keyid)
        assert daemon.parts.notary._session is None
        with tpm:
            await car.until("why", lambda reasons: not self_test_of(reasons))
            certified = verify_session(
                daemon.parts.notary.session.certificate, _keys(daemon.parts.keys.key)
            ).certificate
            assert (certified.unit, certified.key_protection) == (UNIT, "ftpm")
            assert certified.tpm_clock is not None
            assert certified.tpm_clock.reset_count == 2, "the emulator was switched on twice"
            assert (await car.ask("keys"))["state"] == "ready"
        assert set(key_threads()) - others

    lived(config, story)
    assert office.asked == said, "it was enrolled"
    for thread in set(key_threads()) - others:
        thread.join(PATIENCE_S)
    assert not set(key_threads()) - others, "the key was closed"


def _keys(key: HardwareSigner) -> dict[str, Any]:
    return {key.keyid: load_public_key(key.public_key_pem())}


def test_a_daemon_takes_a_new_key_and_its_ledger_goes_on(config: Config, office: Office, tmp_path: Path) -> None:
    async def story(daemon: Daemon, car: Car) -> None:
        await car.until("why", lambda reasons: not self_test_of(reasons))
        parts, first = daemon.parts, daemon.parts.keys.key
        before = parts.notary.session
        size = (await car.ask("ledger"))["ledger"]["size"]
        options = ["--config", str(tmp_path / "agent.toml"), "--reason", "a test"]
        assert await asyncio.to_thread(main, ["keys", "rotate", *options]) == exits.FINE
        second = parts.keys.key
        assert second.keyid != first.keyid
        async with asyncio.timeout(PATIENCE_S):
            newest = None
            while newest is None or b'"keyEpoch":2' not in dsse.parse(newest.envelope).payload:
                await asyncio.sleep(POLL_S)
                newest = await parts.store.call(Store.checkpoint)
        assert parts.notary.session is not before
        certified = verify_session(parts.notary.session.certificate, _keys(second)).certificate
        assert (certified.key_epoch, certified.session, certified.tpm_clock) == (2, 1, None)
        assert verify_checkpoint(newest.envelope, _keys(second)).size > size
        assert (await car.ask("keys"))["epoch"] == 2
        assert not (await car.ask("ledger"))["ledger"]["dispute"]
        verify_sealing_key(parts.desk._sealing_key, UNIT, _keys(second))  # what is said when the link comes up

    lived(config, story)
    unit = office.on_thread(lambda: office.desk.book.units.get(UNIT))
    assert unit is not None
    former = office.on_thread(lambda: office.desk.book.units.former_keys(unit))
    assert (unit.key_epoch, [(one.epoch, one.last_session) for one in former]) == (2, [(1, 1)])

    async def later(daemon: Daemon, car: Car) -> None:
        await car.until("why", lambda reasons: not self_test_of(reasons))
        assert daemon.parts.keys.key.known.epoch == 2
        said = verify_session(daemon.parts.notary.session.certificate, _keys(daemon.parts.keys.key)).certificate
        assert (said.key_epoch, said.session) == (2, 2)

    lived(config, later)
