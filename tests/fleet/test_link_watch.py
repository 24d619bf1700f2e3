"""What a network thread cannot tell of itself, and what is told of a link that is down: how often, and how much."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading
from collections.abc import Callable

import pytest

from agent.fleet import backoff, connection, conversation
from agent.fleet import link as links
from agent.fleet.backoff import CAP_S
from tests.fleet.scripted_broker import (
    BUSY,
    CONNECT,
    PINGREQ,
    PINGRESP,
    QUOTA,
    TAKEN_OVER,
    WAIT_S,
    Heard,
    Peer,
    ScriptedBroker,
    connack,
    disconnect,
    linked,
    publish,
    server_keep_alive,
    threads,
)


@pytest.fixture(autouse=True)
def ceilings_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits between two attempts; these are the longest waits there could have been."""
    seen: list[float] = []

    def no_wait(_lowest: float, highest: float) -> float:
        seen.append(highest)
        return 0.0

    monkeypatch.setattr(random, "uniform", no_wait)
    return seen


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "WATCH_S", 0.02)
    monkeypatch.setattr(connection, "END_S", 0.05)


def good(peer: Peer) -> None:
    peer.grant()
    peer.until_it_leaves()


def downs(heard: Heard) -> list[str]:
    return [detail for up, _, detail in heard.states if not up]


def ups(heard: Heard) -> int:
    return sum(up for up, _, _ in heard.states)


class Slept:
    """How long this computer has slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(links, "slept_s", lambda: self.seconds)


@pytest.mark.usefixtures("watchful")
def test_after_a_sleep_the_connection_is_presumed_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = Slept(monkeypatch)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            slept.seconds += 1.0
            await asyncio.sleep(0.1)
            assert downs(heard) == [], "a blink"
            slept.seconds += 3_600.0
            await heard.until(lambda: ups(heard) == 2)
            assert downs(heard) == ["this computer slept for 3600 s"]

    with ScriptedBroker(good) as broker:
        asyncio.run(story())
    assert broker.connections == 2


@pytest.mark.usefixtures("watchful")
def test_a_connected_car_that_wakes_does_not_wait_the_spread_of_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that is presumed dead is the car's own: the fleet's did not end together."""
    slept = Slept(monkeypatch)
    monkeypatch.setattr(random, "uniform", lambda _, highest: 0.0 if highest == links.WAKE_JITTER_S else highest)

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.link.spread(900_000)
            for wakes in range(1, 4):
                await heard.until(lambda wanted=wakes: ups(heard) == wanted)  # type: ignore[misc]
                slept.seconds += 3_600.0
            await heard.until(lambda: ups(heard) == 4)

    with ScriptedBroker(good) as broker:
        asyncio.run(story())


@pytest.mark.usefixtures("watchful")
def test_a_sleep_ends_the_wait_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = Slept(monkeypatch)
    monkeypatch.setattr(random, "uniform", lambda _, highest: 0.0 if highest == links.WAKE_JITTER_S else 9_999.0)

    def script(peer: Peer) -> None:
        if broker.connections > 1:
            good(peer)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.until(lambda: bool(downs(heard)))
            slept.seconds += 3_600.0
            await heard.up()

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


@pytest.mark.usefixtures("watchful")
def test_a_stuck_thread_is_left_behind_and_delivers_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "STUCK_S", 0.1)
    released, received = threading.Event(), connection.Connection.received

    def stuck_at_the_first(one: connection.Connection, topic: str, payload: bytes) -> None:
        if payload == b"late":
            assert released.wait(WAIT_S)
        received(one, topic, payload)

    monkeypatch.setattr(connection.Connection, "received", stuck_at_the_first)

    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(publish(b"t/1", b"late" if broker.connections == 1 else b"new"))
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.until(lambda: bool(heard.messages))
            assert "the network thread is stuck" in downs(heard)[0]
            assert len(threads()) == 2
            released.set()
            await heard.until(lambda: len(threads()) == 1)
            await asyncio.sleep(0.05)
            assert heard.messages == [("t/1", b"new")]

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("watchful")
def test_a_thread_that_dies_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    overdue = conversation.Conversation._overdue

    def dies(one: conversation.Conversation) -> conversation.Ending | None:
        if one.unsent or one._in_flight:
            raise SystemExit
        return overdue(one)

    monkeypatch.setattr(conversation.Conversation, "_overdue", dies)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            heard.link.publish("t/1", b"x")
            await heard.until(lambda: ups(heard) == 2)
            assert downs(heard) == ["the network thread has died"]

    with ScriptedBroker(good) as broker:
        asyncio.run(story())


def test_threads_that_never_end_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a resolver that hangs: nothing ends it from outside."""
    released, calls = threading.Event(), itertools.count()
    create = socket.create_connection

    def hangs(address: tuple[str, int], timeout: float) -> socket.socket:
        next(calls)
        assert released.wait(WAIT_S)
        return create(address, timeout)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.until(lambda: "stuck" in heard.link.status().detail)
            assert len(threads()) == links.LEFT_BEHIND
            assert next(calls) == links.LEFT_BEHIND
            released.set()
            await heard.up()

    monkeypatch.setattr(connection, "END_S", 0.01)
    monkeypatch.setattr(links, "UP_DEADLINE_S", 0.2)
    with ScriptedBroker(good) as broker:
        monkeypatch.setattr(socket, "create_connection", hangs)
        asyncio.run(story())


@pytest.mark.parametrize(
    ("own_s", "told_s", "counts_s"),
    [(300, 0, 300), (300, 1, 60), (300, 90, 90), (300, 65_535, 1_200), (20, 5, 20), (20, 45, 45), (20, None, 20)],
)
def test_the_brokers_keep_alive_counts_within_bounds(own_s: int, told_s: int | None, counts_s: int) -> None:
    """Never: nobody would notice a dead link. Each second: data and power, for nothing."""

    def script(peer: Peer) -> None:
        peer.grant(b"" if told_s is None else server_keep_alive(told_s))
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address, keepalive_s=own_s) as heard:
            await heard.up()
            assert heard.link._connection is not None
            talk = heard.link._connection._talk
            assert (talk._keepalive_s, talk._client.keepalive) == (counts_s, counts_s)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_one_that_answers_no_ping_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "BROKER_KEEPALIVE_S", (1, 1))
    pings: list[int] = []

    def script(peer: Peer) -> None:
        peer.grant(server_keep_alive(1))
        peer.expect(PINGREQ)
        pings.append(broker.connections)
        peer.send(PINGRESP)
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address, keepalive_s=300) as heard:
            await heard.until(lambda: bool(downs(heard)))
            assert pings == [1]
            assert "Keep alive timeout" in downs(heard)[0]

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


@pytest.mark.parametrize("of", ["message", "state"])
def test_an_exception_in_a_callback_ends_the_connection_and_is_told_once(
    of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(publish(b"t/1", b"x"), publish(b"t/1", b"y"))
        peer.until_it_leaves()

    def fails(*_: object) -> None:
        raise ValueError("boom")

    async def story() -> None:
        async with linked(broker.address) as heard:
            if of == "message":
                heard.on_message = fails
            else:
                heard.on_up = fails
            await heard.until(lambda: broker.connections >= 4)
            assert any(detail.endswith("ValueError('boom')") for detail in downs(heard))
            assert heard.messages == []
            heard.on_message = lambda topic, body: heard.messages.append((topic, body))
            heard.on_up = lambda: None
            await heard.until(lambda: len(heard.messages) == 2)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert capsys.readouterr().out.count("link_failed") == 1


def test_a_link_that_stays_down_is_told_of_once_and_then_hourly_and_at_last_how_long_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr(links, "boot_s", lambda: now_s[0])

    def script(peer: Peer) -> None:
        if broker.connections == 1:
            peer.grant()
            peer.message()
        elif over:
            good(peer)

    over: list[bool] = []

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: heard.link.publish("t/1", b"x")
            await heard.until(lambda: heard.link.status().attempts >= 30)
            assert len(heard.states) == 2
            now_s[0] += 3_600.0
            await heard.until(lambda: len(heard.states) == 3)
            await heard.until(lambda: heard.link.status().attempts >= 60)
            assert [up for up, _, _ in heard.states] == [True, False, False]
            over.append(True)
            await heard.until(lambda: ups(heard) == 2)
            assert heard.states[-1][2].startswith("after 3600 s, at attempt ")
            assert (heard.link.status().attempts, heard.link.status().connections) == (0, 2)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_many_connections_leave_no_thread_and_no_socket_behind_and_their_bytes_are_counted() -> None:
    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(publish(b"t/1", b"x" * 1000))
        peer.message()

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: heard.link.publish("t/1", b"y" * 3000)
            await heard.until(lambda: ups(heard) >= 40)
            assert len(threads()) <= 1
            sent, received = heard.link.traffic()
            assert 40 * 3000 < sent < 40 * 3600
            assert 39 * 1000 < received < 42 * 1300

    before = threading.active_count()
    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert threading.active_count() == before


def refuses(code: int, properties: bytes = b"") -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.expect(CONNECT)
        peer.send(connack(code, properties))

    return script


def throws_out(code: int) -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(disconnect(code))

    return script


@pytest.mark.parametrize(
    "script",
    [refuses(BUSY), refuses(QUOTA), refuses(0x88), refuses(0x9F), throws_out(TAKEN_OVER), throws_out(BUSY)],
    ids=["busy", "quota", "unavailable", "rate", "another has our id", "busy later"],
)
def test_a_broker_with_too_much_to_do_is_asked_late(script: Callable[[Peer], None], ceilings_s: list[float]) -> None:
    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.until(lambda: len(ceilings_s) >= 2)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert ceilings_s[0] == CAP_S


def test_a_server_that_would_send_us_elsewhere_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = b"\x1c\0\x0cevil.example"

    async def story() -> None:
        async with linked(first.address, second.address) as heard:
            assert await heard.up() == second.name
            assert "evil.example" in downs(heard)[0]

    with ScriptedBroker(refuses(0x9C, elsewhere)) as first, ScriptedBroker(good) as second:
        asyncio.run(story())
    assert capsys.readouterr().out.count("redirect_ignored") == 1


def test_after_a_link_that_stood_the_first_broker_comes_first_again(
    monkeypatch: pytest.MonkeyPatch, ceilings_s: list[float]
) -> None:
    monkeypatch.setattr(backoff, "SETTLED_S", -1.0)
    ended = threading.Event()

    def second_script(peer: Peer) -> None:
        peer.grant()
        assert ended.wait(WAIT_S)

    def first_script(peer: Peer) -> None:
        if first.connections > 1:
            good(peer)

    async def story() -> None:
        async with linked(first.address, second.address) as heard:
            assert await heard.up() == second.name
            heard.link.spread(700_000)
            ended.set()
            await heard.until(lambda: ups(heard) == 2)
            assert [broker for up, broker, _ in heard.states if up] == [second.name, first.name]

    with ScriptedBroker(first_script) as first, ScriptedBroker(second_script) as second:
        asyncio.run(story())
    assert ceilings_s == [1.0, 700.0]
