"""The link and a real Mosquitto: frozen, fought over, fed too much, and behind certificates of every kind."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.fleet import link as links
from agent.fleet.conversation import Ending
from agent.fleet.link_config import LinkConfig
from agent.fleet.quarantine import LOSSES
from agent.fleet.tls import TlsClient, TlsFiles
from hil.broker import Mosquitto, free_port
from hil.certificates import HERE, Authority
from tests.fleet.scripted_broker import Heard, linked
from tests.tools import needs

pytestmark = needs(Mosquitto.binary(), "mosquitto is not installed")

PLAIN = "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\nuser root\n"
HOUR_S = 3_600.0
NOW_VALID, EXPIRED, NOT_YET = (-HOUR_S, HOUR_S), (-2 * HOUR_S, -HOUR_S), (HOUR_S, 2 * HOUR_S)
"""From when and until when, from now."""
TLS = PLAIN + "cafile {ca}\ncertfile {certificate}\nkeyfile {key}\nrequire_certificate true\ntls_version tlsv1.3\n"


class Configured(Mosquitto):
    """Mosquitto with a configuration of the test's."""

    def __init__(self, folder: Path, text: str, **names: str) -> None:
        super().__init__(folder, free_port())
        self._text = text.format(port=self.port, **names)
        self.address = ("127.0.0.1", self.port)

    def command(self) -> list[str]:
        binary, config = self.binary(), self._folder / "own.conf"
        assert binary is not None
        config.write_text(self._text)
        return [binary, "-c", str(config)]


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other closely, and each is told of."""
    monkeypatch.setattr(random, "uniform", lambda _lowest, highest: min(highest, 0.02))
    monkeypatch.setattr(links, "TELL_AGAIN_S", 0.0)


def downs(heard: Heard) -> list[str]:
    return [detail for up, _, detail in heard.states if not up]


def ups(heard: Heard) -> int:
    return sum(up for up, _, _ in heard.states)


@pytest.mark.usefixtures("no_waits")
def test_a_frozen_broker_is_noticed_and_come_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "UP_DEADLINE_S", 0.5)

    async def story() -> None:
        async with linked(broker.address, keepalive_s=1) as heard:
            await heard.up()
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                await heard.until(lambda: len(downs(heard)) >= 2)
                assert not heard.link.connected
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            await heard.until(lambda: ups(heard) == 2)

    with Configured(tmp_path / "broker", PLAIN) as broker:
        asyncio.run(story())


def test_two_with_the_same_client_id_do_not_fight_in_a_tight_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def half(_lowest: float, highest: float) -> float:
        waits.append(highest)
        return highest / 40

    monkeypatch.setattr(random, "uniform", half)

    async def story() -> None:
        async with linked(broker.address) as one:
            await one.up()
            other = Heard(LinkConfig(brokers=(broker.address,), client_id="car", filters=("t/+",)))
            other.link.start()
            try:
                await asyncio.sleep(3.0)
            finally:
                await other.link.close()
            took_over = one.link.status().connections + other.link.status().connections
            assert 2 <= took_over <= 2 + 2 * len(waits)
            assert max(waits) >= 4.0, "and each waits longer and longer"

    with Configured(tmp_path / "broker", PLAIN) as broker:
        asyncio.run(story())


@pytest.mark.usefixtures("no_waits")
def test_what_is_too_large_for_this_broker_is_not_sent(tmp_path: Path) -> None:
    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            assert not heard.link.publish("t/1", b"x" * 3_000, token="job/1")
            assert heard.link.publish("t/1", b"x" * 1_000, token="job/2")
            await heard.until(lambda: bool(heard.messages))
            assert heard.undelivered[0][0] == "job/1"
            assert "more than the 2000" in heard.undelivered[0][1]
            assert ups(heard) == 1

    with Configured(tmp_path / "broker", PLAIN + "max_packet_size 2000\n") as broker:
        asyncio.run(story())


@pytest.mark.usefixtures("no_waits")
def test_a_message_that_this_broker_only_answers_against_the_rules_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit of payloads is told nowhere, and answered by a PUBACK with a reason that is none of a PUBACK's."""
    monkeypatch.setattr(links, "PROVEN_S", 0.05)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()

            def offer() -> bool:
                heard.link.publish("t/1", b"x" * 3_000, token="job/1")
                return bool(heard.undelivered)

            await heard.until(offer)
            ((token, _, poison),) = heard.undelivered
            assert (token, poison) == ("job/1", True)
            assert ups(heard) <= LOSSES + 1
            await heard.until(lambda: heard.link.publish("t/1", b"y", token="job/2") and bool(heard.messages))

    with Configured(tmp_path / "broker", PLAIN + "message_size_limit 1000\n") as broker:
        asyncio.run(story())


class Fleet:
    """A fleet's CA, a broker behind its certificate, and a unit's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.stranger = Authority(folder / "fleet"), Authority(folder / "stranger")
        self.files = self.ca.issue("unit")

    def issue_unit(self, valid: tuple[float, float] = NOW_VALID, *, by: Authority | None = None) -> None:
        issued = (by or self.ca).issue("unit", from_s=valid[0], valid_s=valid[1])
        if by is not None:
            shutil.copy(issued.key, self.files.key)
            shutil.copy(issued.certificate, self.files.certificate)

    @contextmanager
    def broker(
        self, valid: tuple[float, float] = NOW_VALID, address: str = HERE, *, by: Authority | None = None
    ) -> Iterator[Configured]:
        issued = (by or self.ca).issue("broker", from_s=valid[0], valid_s=valid[1], hosts=(address,))
        names = {"ca": self.files.ca, "certificate": issued.certificate, "key": issued.key}
        with Configured(self.folder / "mosquitto", TLS, **names) as running:
            yield running


@pytest.fixture
def fleet(tmp_path: Path, no_waits: None) -> Fleet:
    return Fleet(tmp_path)


def why_down(broker: tuple[str, int], files: TlsFiles) -> str:
    """What the link says of its first attempt."""

    async def story() -> str:
        async with linked(broker, tls=files) as heard:
            await heard.until(lambda: bool(heard.states))
            up, _, detail = heard.states[0]
            assert not up
            return detail

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("valid", "address", "stranger", "why"),
    [
        (EXPIRED, "127.0.0.1", False, "the broker's certificate has expired"),
        (NOT_YET, "127.0.0.1", False, "the broker's certificate is not valid yet by this computer's clock"),
        (NOW_VALID, "127.0.0.2", False, "the broker's certificate is for another address"),
        (NOW_VALID, "127.0.0.1", True, "the broker's certificate is signed by a CA that this unit does not know"),
    ],
)
def test_a_broker_whose_certificate_does_not_hold_is_told_of_in_plain_words(
    fleet: Fleet, valid: tuple[float, float], address: str, stranger: bool, why: str
) -> None:
    with fleet.broker(valid, address, by=fleet.stranger if stranger else None) as broker:
        assert why in why_down(broker.address, fleet.files)


@pytest.mark.parametrize(
    ("valid", "stranger", "why"),
    [
        (EXPIRED, False, "the broker says that this unit's certificate has expired"),
        (NOT_YET, False, "the broker says that this unit's certificate is bad (it may not be valid yet)"),
        (NOW_VALID, True, "the broker does not know the CA that signed this unit's certificate"),
    ],
)
def test_a_unit_whose_certificate_does_not_hold_is_told_so_in_plain_words(
    fleet: Fleet, valid: tuple[float, float], stranger: bool, why: str
) -> None:
    fleet.issue_unit(valid, by=fleet.stranger if stranger else None)
    with fleet.broker() as broker:
        assert why in why_down(broker.address, fleet.files)


def test_a_port_without_tls_is_told_of_in_plain_words(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def story() -> str:
            answering = asyncio.create_task(asyncio.to_thread(answer))
            async with linked(listener.getsockname(), tls=fleet.files) as heard:
                await heard.until(lambda: bool(heard.states))
                await answering
                return heard.states[0][2]

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"220 mail.example ESMTP\r\n")

        assert "the broker does not speak TLS on this port" in asyncio.run(story())


def test_a_certificate_that_expires_stops_the_next_connection_and_a_new_one_needs_no_restart(fleet: Fleet) -> None:
    async def story(broker: Configured) -> None:
        async with linked(broker.address, tls=fleet.files) as heard:
            await heard.up()
            assert heard.link.publish("t/1", b"x")
            await heard.until(lambda: heard.messages == [("t/1", b"x")])
            fleet.issue_unit(EXPIRED)
            assert heard.link._connection is not None
            heard.link._connection.break_off(Ending("the test ends it"))
            await heard.until(lambda: any("this unit's certificate has expired" in detail for detail in downs(heard)))
            fleet.issue_unit()
            await heard.until(lambda: ups(heard) == 2)

    with fleet.broker() as running:
        asyncio.run(story(running))


def test_a_session_is_resumed_while_the_files_stay_the_same(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    reused: list[bool] = []
    wrap = TlsClient.wrap

    def noted(tls: TlsClient, *args: object) -> ssl.SSLSocket:
        made = wrap(tls, *args)  # type: ignore[arg-type]
        reused.append(bool(made.session_reused))
        assert made.version() == "TLSv1.3"
        return made

    async def story(broker: Configured) -> None:
        async with linked(broker.address, tls=fleet.files) as heard:
            for connections in range(1, 6):
                if connections == 4:
                    fleet.issue_unit()
                await heard.until(lambda wanted=connections: ups(heard) == wanted)  # type: ignore[misc]
                assert heard.link._connection is not None
                heard.link._connection.break_off(Ending("the test ends it"))
            await heard.until(lambda: ups(heard) == 6)

    monkeypatch.setattr(TlsClient, "wrap", noted)
    with fleet.broker() as running:
        asyncio.run(story(running))
    assert reused == [False, True, True, False, True, True]
