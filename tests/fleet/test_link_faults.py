"""The link against brokers that do not keep to the rules: each is left with a reason, later and later, never for good.

The broker here is a few lines of MQTT 5 by hand, so that every test says byte by byte what goes wrong.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from pathlib import Path

import pytest

from agent.fleet import backoff, conversation
from agent.fleet import link as links
from agent.fleet.backoff import CAP_S
from agent.fleet.link_config import MAX_PACKET_BYTES
from agent.fleet.metered_socket import MeteredSocket
from agent.fleet.tls import TlsFiles
from tests.fleet.scripted_broker import (
    BUSY,
    CONNECT,
    DISCONNECT,
    GRANTED,
    NOT_AUTHORIZED,
    NOWHERE,
    PUBLISH,
    WAIT_S,
    Peer,
    Script,
    ScriptedBroker,
    connack,
    linked,
    packet,
    publish,
    suback,
)


@pytest.fixture(autouse=True)
def ceilings_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits between two attempts, and each is told of; these are the longest waits there could have been."""
    seen: list[float] = []

    def no_wait(_lowest: float, highest: float) -> float:
        seen.append(highest)
        return 0.0

    monkeypatch.setattr(random, "uniform", no_wait)
    monkeypatch.setattr(links, "TELL_AGAIN_S", 0.0)
    return seen


def no_connack(peer: Peer) -> None:
    peer.until_it_leaves()


def no_suback(peer: Peer) -> None:
    peer.greet()
    peer.until_it_leaves()


def good(peer: Peer) -> None:
    peer.grant()
    peer.until_it_leaves()


@pytest.mark.parametrize("silent", [no_connack, no_suback])
def test_a_broker_that_does_not_answer_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch, silent: Script) -> None:
    async def story() -> None:
        async with linked(first.address, second.address) as heard:
            assert await heard.up() == second.name
            assert heard.states[0][:2] == (False, first.name)
            assert "did not grant the subscriptions" in heard.states[0][2]

    monkeypatch.setattr(links, "UP_DEADLINE_S", 0.3)
    with ScriptedBroker(silent) as first, ScriptedBroker(good) as second:
        asyncio.run(story())
        assert first.connections >= 1


def refuse(peer: Peer) -> None:
    peer.expect(CONNECT)
    peer.send(connack(NOT_AUTHORIZED))


def busy(peer: Peer) -> None:
    peer.expect(CONNECT)
    peer.send(connack(BUSY))


def refuse_one_filter(peer: Peer) -> None:
    peer.send(suback(peer.greet(), GRANTED, NOT_AUTHORIZED))
    peer.expect(DISCONNECT)


def grant_one_of_two(peer: Peer) -> None:
    peer.send(suback(peer.greet(), GRANTED))
    peer.until_it_leaves()


def unknown_packet(peer: Peer) -> None:
    peer.expect(CONNECT)
    peer.send(packet(0x00, b"\0"))


def endless_length(peer: Peer) -> None:
    peer.expect(CONNECT)
    peer.send(b"\x20\xff\xff\xff\xff\xff")


def broken_properties(peer: Peer) -> None:
    peer.expect(CONNECT)
    peer.send(packet(0x20, b"\0\0\x05\xff\xff\xff\xff\xff"))


def topic_that_is_no_text(peer: Peer) -> None:
    peer.grant()
    peer.send(publish(b"t/\xff", b"x"))
    peer.until_it_leaves()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (refuse, "the broker refused the connection: Not authorized"),
        (busy, "the broker refused the connection: Server busy"),
        (refuse_one_filter, "the broker refused the subscription to t/two"),
        pytest.param(
            grant_one_of_two,
            "",
        ),
        (unknown_packet, ""),
        (endless_length, ""),
        (broken_properties, ""),
    ],
)
def test_a_broker_that_refuses_or_talks_nonsense_is_left_with_a_reason(script: Script, reason: str) -> None:
    async def story() -> None:
        async with linked(bad.address, other.address, filters=("t/one", "t/two")) as heard:
            await heard.until(lambda: len(heard.states) >= 3 or any(up for up, _, _ in heard.states))
            up, broker, detail = heard.states[0]
            assert (up, broker) == (False, bad.name)
            assert detail
            assert reason in detail
            assert heard.states[1][:2] == (False, other.name), "the next one is tried"

    with ScriptedBroker(script) as bad, ScriptedBroker(refuse) as other:
        asyncio.run(story())


def test_a_topic_that_is_no_text_costs_the_connection_and_not_the_link() -> None:
    async def story() -> None:
        async with linked(bad.address, other.address) as heard:
            await heard.until(lambda: any(broker == other.name for _, broker, _ in heard.states))
            (detail,) = (detail for up, broker, detail in heard.states if broker == bad.name and not up)
            assert "'utf-8' codec can't decode byte 0xff" in detail
            assert heard.messages == []

    with ScriptedBroker(topic_that_is_no_text) as bad, ScriptedBroker(refuse) as other:
        asyncio.run(story())


def test_a_connection_that_failed_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[MeteredSocket] = []

    def noted(raw: socket.socket, limit: int) -> MeteredSocket:
        made.append(MeteredSocket(raw, limit))
        return made[-1]

    async def story() -> None:
        async with linked(bad.address, other.address) as heard:
            await heard.until(lambda: any(broker == other.name for _, broker, _ in heard.states))
            assert made[0].fileno() == -1

    monkeypatch.setattr(conversation, "MeteredSocket", noted)
    with ScriptedBroker(topic_that_is_no_text) as bad, ScriptedBroker(refuse) as other:
        asyncio.run(story())


def close_when_up(peer: Peer) -> None:
    peer.grant()


def test_a_broker_that_closes_what_it_granted_is_asked_later_and_later(ceilings_s: list[float]) -> None:
    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.until(lambda: len(ceilings_s) >= 13)
            downs = [detail for up, _, detail in heard.states if not up]
            assert all("disconnected" in detail for detail in downs)
            assert len(downs) == len(ceilings_s)

    with ScriptedBroker(close_when_up) as broker:
        asyncio.run(story())
        assert ceilings_s[:13] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, CAP_S, CAP_S, CAP_S]
        assert len(ceilings_s) <= broker.connections <= len(ceilings_s) + 1


def close_when_spoken_to(peer: Peer) -> None:
    peer.grant()
    peer.expect(PUBLISH)


def test_a_link_that_was_up_for_long_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, ceilings_s: list[float]
) -> None:
    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: heard.link.publish("t/1", b"x")
            await heard.until(lambda: len(ceilings_s) >= 5)

    monkeypatch.setattr(backoff, "SETTLED_S", -1.0)
    with ScriptedBroker(close_when_spoken_to) as broker:
        asyncio.run(story())
    assert set(ceilings_s) == {1.0}


def test_no_bytes_of_a_broker_end_the_link_or_leave_anything_behind() -> None:
    """At first, and after a good beginning: at random, and as packets of each kind with something at random in them."""
    chance = random.Random(4)
    attacks = 120

    def script(peer: Peer) -> None:
        number = broker.connections
        if number > attacks:
            good(peer)
            return
        if number % 3:
            peer.grant()
        else:
            peer.expect(CONNECT)
        for _ in range(chance.randint(1, 4)):
            noise = chance.randbytes(chance.randint(0, 300))
            peer.send(noise if number % 2 else packet(chance.choice([0x20, 0x30, 0x32, 0x40, 0x90, 0xD0, 0xE0]), noise))

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: [heard.link.publish("t/1", b"x", token=f"{n}") for n in range(4)]
            await heard.until(lambda: broker.connections > attacks and heard.link.connected)
            assert sum(len(body) for _, body in heard.messages) < attacks * 4 * 300

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_a_packet_larger_than_the_broker_was_told_ends_the_connection_before_it_is_read() -> None:
    """It announces 256 MB; nobody waits for them, and nobody makes room."""

    async def story() -> None:
        async with linked(broker.address, other.address) as heard:
            await heard.until(lambda: any(name == other.name for _, name, _ in heard.states))
            (detail,) = (detail for up, name, detail in heard.states if name == broker.name and not up)
            assert f"a packet of 268435455 bytes, more than the {MAX_PACKET_BYTES} that it was told" in detail
            assert heard.messages == []

    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(b"\x30\xff\xff\xff\x7f\0\3t/1\0" + b"x" * 1000)
        peer.until_it_leaves()

    with ScriptedBroker(script) as broker, ScriptedBroker(refuse) as other:
        asyncio.run(story())


def test_a_message_with_qos_2_would_be_kept_and_so_ends_the_connection() -> None:
    async def story() -> None:
        async with linked(broker.address, other.address) as heard:
            await heard.until(lambda: any(name == other.name for _, name, _ in heard.states))
            assert "QoS 2" in next(detail for up, _, detail in heard.states if not up)

    def script(peer: Peer) -> None:
        peer.grant()
        peer.send(packet(0x34, b"\0\3t/1\0\7\0x"))
        peer.until_it_leaves()

    with ScriptedBroker(script) as broker, ScriptedBroker(refuse) as other:
        asyncio.run(story())


@pytest.mark.parametrize("missing", [True, False])
def test_tls_files_that_cannot_be_used_are_a_state_and_are_tried_again(tmp_path: Path, missing: bool) -> None:
    files = NOWHERE
    if not missing:
        for name in ("ca.pem", "unit.pem", "unit.key"):
            (tmp_path / name).write_text("-----BEGIN NONSENSE-----\n")
        files = TlsFiles(ca=f"{tmp_path}/ca.pem", certificate=f"{tmp_path}/unit.pem", key=f"{tmp_path}/unit.key")

    async def story() -> None:
        async with linked(("127.0.0.1", 1), ("127.0.0.1", 2), tls=files) as heard:
            await heard.until(lambda: len(heard.states) >= 4)
            assert {broker for _, broker, _ in heard.states} == {"127.0.0.1:1", "127.0.0.1:2"}
            for up, _, detail in heard.states:
                assert not up
                assert "the TLS files cannot be used: " in detail
            assert not heard.link.publish("t/1", b"x")

    asyncio.run(story())


def test_a_night_without_a_broker_does_not_end_the_link(ceilings_s: list[float]) -> None:
    async def story() -> None:
        async with linked(("127.0.0.1", 1), tls=NOWHERE) as heard:
            task = heard.link._tasks[0]
            enough = asyncio.create_task(heard.until(lambda: len(ceilings_s) >= 1_100))
            await asyncio.wait({task, enough}, return_when=asyncio.FIRST_COMPLETED)
            enough.cancel()
            assert len(heard.states) >= 1_100

    asyncio.run(story())
    assert max(ceilings_s) == CAP_S


def test_a_link_that_is_closed_while_it_connects_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, leaving = threading.Event(), threading.Event()
    create, leave = socket.create_connection, conversation.Conversation.leave

    def slowly(address: tuple[str, int], timeout: float) -> socket.socket:
        connecting.set()
        leaving.wait(WAIT_S)
        return create(address, timeout)

    def noted(talk: conversation.Conversation) -> None:
        leave(talk)
        leaving.set()

    async def story() -> None:
        async with linked(broker.address):
            await asyncio.to_thread(connecting.wait, WAIT_S)

    with ScriptedBroker(good) as broker:
        monkeypatch.setattr(socket, "create_connection", slowly)
        monkeypatch.setattr(conversation.Conversation, "leave", noted)
        asyncio.run(story())
