"""What comes too fast, or answers nothing: how much of it is looked at, and that everybody else has a turn."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time

import pytest

from agent.fleet import conversation, flood
from agent.fleet import link as links
from agent.fleet.link_config import INBOX_MESSAGES
from tests.fleet.scripted_broker import (
    GRANTED,
    NOT_AUTHORIZED,
    PINGRESP,
    PUBACK,
    WAIT_S,
    Peer,
    Script,
    ScriptedBroker,
    connack,
    linked,
    puback,
    publish,
    suback,
)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits between two attempts, and each is told of."""
    monkeypatch.setattr(random, "uniform", lambda _lowest, _highest: 0.0)
    monkeypatch.setattr(links, "TELL_AGAIN_S", 0.0)


def accepts_twice(peer: Peer) -> None:
    peer.grant()
    peer.send(connack())


def grants_twice(peer: Peer) -> None:
    subscribe = peer.greet()
    peer.send(suback(subscribe, GRANTED), suback(subscribe, GRANTED))


def grants_what_nobody_asked(peer: Peer) -> None:
    peer.grant()
    peer.send(suback(b"\0\x63", GRANTED))


def acknowledges_nothing(peer: Peer) -> None:
    peer.grant()
    peer.send(puback(7))


def acknowledges_twice(peer: Peer) -> None:
    peer.grant()
    number, _ = peer.message()
    peer.send(puback(number), puback(number, NOT_AUTHORIZED))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (accepts_twice, "accepted the connection a second time"),
        (grants_twice, "answered a subscription that it was not asked for"),
        (grants_what_nobody_asked, "answered a subscription that it was not asked for"),
        (acknowledges_nothing, "acknowledged a message that it was not sent"),
        (acknowledges_twice, "acknowledged a message that it was not sent"),
    ],
)
def test_an_answer_to_nothing_ends_the_connection_and_blames_no_message(answers: Script, why: str) -> None:
    def script(peer: Peer) -> None:
        answers(peer)
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: heard.link.publish("t/1", b"x", token="job/1")
            await heard.until(lambda: broker.connections >= 5)
            assert all(why in detail for up, _, detail in heard.states if not up)
            assert heard.undelivered == []

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


@pytest.mark.parametrize("flood", [PINGRESP, publish(b"t/1", b"x"), publish(b"t/1", b"x" * 60_000)])
def test_of_a_flood_of_any_packets_so_many_are_read_and_then_none_for_a_while(
    monkeypatch: pytest.MonkeyPatch, flood: bytes
) -> None:
    """A while without end, here; what the link itself sends goes on."""
    monkeypatch.setattr(conversation, "UNREAD_S", 9_999.0)
    burst, came = 20, threading.Event()

    def script(peer: Peer) -> None:
        peer.grant()
        threading.Thread(target=hear, args=(peer,)).start()
        with contextlib.suppress(OSError):
            peer.send(*[flood] * 50_000)
        heard_all.wait(WAIT_S)

    def hear(peer: Peer) -> None:
        with contextlib.suppress(ConnectionError):
            peer.message()
            came.set()
            peer.until_it_leaves()
        heard_all.set()

    async def story() -> None:
        async with linked(broker.address, messages_per_s=1.0, message_burst=burst) as heard:
            await heard.up()
            await heard.until(lambda: heard.link._gate.flooded(time.monotonic()))
            assert heard.link._connection is not None
            made = heard.link._connection._talk.socket
            assert made is not None
            assert heard.link.publish("t/1", b"x")
            await heard.until(came.is_set)
            units = made.guard.frames + made.read_bytes / conversation.FRAME_UNIT_BYTES
            assert units <= conversation.FRAMES_PER_MESSAGE * (burst + WAIT_S) + 20
            assert heard.link.connected

    heard_all = threading.Event()
    with ScriptedBroker(script) as broker:
        asyncio.run(story())


FLOOD = 5_000
LARGE = b"x" * (16 * 1024)


class Flood:
    """Grants, floods, ends with a message that must be acknowledged, and so knows when all was taken."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    def __call__(self, peer: Peer) -> None:
        peer.grant()
        one = publish(b"t/1", LARGE)
        for _ in range(FLOOD // 50):
            peer.send(one * 50)
        peer.send(publish(b"t/1", b"the last", identifier=7))
        assert peer.expect(PUBACK)[:2] == b"\0\7"
        self.taken.set()
        peer.until_it_leaves()


class Turns:
    """Counts the turns of the loop, each of which could have been a frame of the vehicle's bus."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._beat()

    def _beat(self) -> None:
        self.count += 1
        self._loop.call_soon(self._beat)


@pytest.mark.parametrize("held_up", [False, True])
def test_a_flood_is_handed_over_one_message_a_turn_of_the_loop(held_up: bool) -> None:
    """Held up, the loop stands still at the first message until all are here; then only the newest wait."""

    async def story() -> None:
        turns, at_turn = Turns(), list[int]()

        def take(topic: str, body: bytes) -> None:
            at_turn.append(turns.count)
            heard.messages.append((topic, body))
            if held_up and len(at_turn) == 1:
                assert flood.taken.wait(WAIT_S), "the network thread does not wait for the loop"

        async with linked(broker.address) as heard:
            heard.on_message = take
            await heard.until(lambda: heard.messages[-1:] == [("t/1", b"the last")])
            assert len(set(at_turn)) == len(at_turn), "everybody else had a turn between any two messages"
            assert heard.link.connected, "and the link lives on"
            if held_up:
                assert len(at_turn) == 1 + INBOX_MESSAGES

    flood = Flood()
    with ScriptedBroker(flood) as broker:
        asyncio.run(story())


def test_what_comes_too_fast_is_dropped_counted_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(links, "WATCH_S", 0.02)
    monkeypatch.setattr(flood, "QUIET_S", 1.0)

    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(*[publish(b"t/1", b"x")] * 35)
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address, messages_per_s=0.001, message_burst=20) as heard:
            await heard.until(lambda: heard.link.status().dropped.get("flood", 0) == 15)
            await heard.until(lambda: len(heard.messages) == 20)
            await heard.until(lambda: heard.link._flooded)
            await heard.until(lambda: not heard.link._flooded)
            assert heard.link.connected

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    told = capsys.readouterr().out
    assert (told.count("flood_of_messages"), told.count("flood_over")) == (1, 1)
