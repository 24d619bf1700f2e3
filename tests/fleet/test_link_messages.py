"""What becomes of a message: the broker's limits are kept, its refusals told, what it hangs up over is found out."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable

import pytest

from agent.fleet import conversation
from agent.fleet import link as links
from agent.fleet.quarantine import LOSSES
from tests.fleet.scripted_broker import (
    CONNECT,
    DISCONNECT,
    MAXIMUM_QOS_0,
    NO_RETAIN,
    NOT_AUTHORIZED,
    PUBLISH_QOS0,
    QUOTA,
    RECEIVE_MAXIMUM_EXCEEDED,
    SUBSCRIBE,
    TAKEN_OVER,
    Peer,
    ScriptedBroker,
    connack,
    disconnect,
    linked,
    maximum_packet_size,
    packet,
    puback,
    reason_string,
    receive_maximum,
)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _lowest, _highest: 0.0)


def grants(properties: bytes = b"") -> Callable[[Peer], None]:
    def script(peer: Peer) -> None:
        peer.grant(properties)
        peer.until_it_leaves()

    return script


class Acknowledging:
    """Acknowledges every message, those on `t/bad` with these bytes after the identifier; notes the topics."""

    def __init__(self, bad: bytes = b"", properties: bytes = b"") -> None:
        self.topics: list[bytes] = []
        self._bad, self._properties = bad, properties

    def __call__(self, peer: Peer) -> None:
        peer.grant(self._properties)
        while True:
            identifier, topic = peer.message()
            self.topics.append(topic)
            peer.send(packet(0x40, identifier.to_bytes(2, "big") + (self._bad if topic == b"t/bad" else b"")))


@pytest.mark.parametrize(("allowed", "taken"), [(None, 6), (2, 2), (100, 6), (1, 1)])
def test_no_more_is_on_its_way_than_the_broker_takes(allowed: int | None, taken: int) -> None:
    async def story() -> None:
        async with linked(broker.address, max_in_flight=6) as heard:
            await heard.up()
            assert [heard.link.publish("t/1", b"x") for _ in range(9)].count(True) == taken

    with ScriptedBroker(grants(b"" if allowed is None else receive_maximum(allowed))) as broker:
        asyncio.run(story())


@pytest.mark.parametrize(
    ("properties", "topic", "body", "retain", "why"),
    [
        (maximum_packet_size(500), "t/1", b"x" * 500, False, "more than the 500 that this broker takes"),
        (NO_RETAIN, "t/1", b"x", True, "this broker retains nothing"),
        (b"", "t/#", b"x", False, "no wildcards"),
        (b"", "/".join("t" * 9), b"x", False, "7 slashes"),
        (b"", "t" * 257, b"x", False, "256 bytes"),
    ],
)
def test_what_this_broker_must_not_be_sent_is_refused_at_once_and_told_of(
    properties: bytes, topic: str, body: bytes, retain: bool, why: str
) -> None:
    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            assert not heard.link.publish(topic, body, token="job/1", retain=retain)
            assert heard.undelivered == [], "not in the stack of the one who publishes"
            await heard.until(lambda: bool(heard.undelivered))
            ((token, detail, poison),) = heard.undelivered
            assert (token, poison) == ("job/1", False)
            assert why in detail
            assert heard.link.publish("t/good", b"x", token="job/2")
            await heard.until(lambda: bool(script.topics))
            assert heard.link.status().dropped == {"refused": 1}
            assert heard.link.connected

    script = Acknowledging(properties=properties)
    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert script.topics == [b"t/good"]


def test_a_broker_without_qos_1_is_sent_none() -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.grant(MAXIMUM_QOS_0)
        while len(seen) < 6:
            seen.append(peer.expect(PUBLISH_QOS0))
        peer.until_it_leaves()

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            assert all(heard.link.publish("t/1", b"x", qos=1) for _ in range(6)), "nothing waits for acknowledgement"
            await heard.until(lambda: len(seen) == 6)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_a_refusing_acknowledgement_is_told_and_the_next_message_goes() -> None:
    said = reason_string(b"not you\x1b[2J")

    async def story() -> None:
        async with linked(broker.address, max_in_flight=1) as heard:
            await heard.up()
            assert heard.link.publish("t/bad", b"x", token="job/1")
            await heard.until(lambda: bool(heard.undelivered))
            ((token, detail, poison),) = heard.undelivered
            assert (token, poison) == ("job/1", False)
            assert "Not authorized (not you" in detail
            assert "\x1b" not in detail
            assert heard.link.publish("t/good", b"x", token="job/2"), "its place is free again"
            await heard.until(lambda: len(script.topics) == 2)
            assert len(heard.undelivered) == 1

    script = Acknowledging(bytes([NOT_AUTHORIZED, len(said)]) + said)
    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_acknowledgements_out_of_order_do_no_harm() -> None:
    def script(peer: Peer) -> None:
        peer.grant()
        identifiers = [peer.message()[0] for _ in range(3)]
        for identifier in reversed(identifiers):
            peer.send(puback(identifier))
        last, _ = peer.message()
        peer.send(puback(last))
        done.append(True)
        peer.until_it_leaves()

    done: list[bool] = []

    async def story() -> None:
        async with linked(broker.address, max_in_flight=3) as heard:
            await heard.up()
            assert all(heard.link.publish("t/1", b"x", token=f"job/{n}") for n in range(3))
            await heard.until(lambda: heard.link.publish("t/2", b"x"))
            await heard.until(lambda: bool(done))
            assert heard.undelivered == []
            assert heard.link.connected

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_a_broker_that_acknowledges_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "ACKNOWLEDGED_S", 0.3)

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            heard.link.publish("t/1", b"x", token="job/1")
            await heard.until(lambda: broker.connections > 1)
            assert "did not acknowledge" in next(detail for up, _, detail in heard.states if not up)

    with ScriptedBroker(grants()) as broker:
        asyncio.run(story())


class HangsUpOver:
    """Acknowledges every message but one, over which it hangs up, in the way that it is told."""

    def __init__(self, poison: bytes, last_words: bytes) -> None:
        self._poison, self._last_words = poison, last_words
        self.connections: list[list[bytes]] = []
        self.taken: set[bytes] = set()

    def __call__(self, peer: Peer) -> None:
        topics: list[bytes] = []
        self.connections.append(topics)
        peer.grant()
        while True:
            identifier, topic = peer.message()
            topics.append(topic)
            if topic == self._poison:
                peer.send(self._last_words)
                return
            if len(self.connections) > 1:  # those that were on the way with the poison are lost
                peer.send(puback(identifier))
                self.taken.add(topic)


@pytest.mark.parametrize(
    "last_words",
    [b"", disconnect(RECEIVE_MAXIMUM_EXCEEDED), packet(0x40, b"\0\1\x95\0"), b"\x40\x02\0"],
    ids=["closes", "DISCONNECT", "an acknowledgement that is against the rules", "half a packet"],
)
def test_a_message_over_which_brokers_hang_up_is_found_out_and_no_other_is_blamed(
    monkeypatch: pytest.MonkeyPatch, last_words: bytes
) -> None:
    """As mosquitto does over a message that is too large for it: without end, if it is sent at each reconnect."""
    monkeypatch.setattr(links, "PROVEN_S", 0.05)
    script = HangsUpOver(b"t/poison", last_words)
    outbox = ["t/with-it", "t/poison", "t/other"]

    async def story() -> None:
        async with linked(broker.address) as heard:

            def offer() -> bool:
                for topic in outbox:
                    if topic.encode() not in script.taken:
                        heard.link.publish(topic, b"x", token=topic)
                return any(poison for _, _, poison in heard.undelivered)

            await heard.up()
            await heard.until(offer)
            assert [token for token, _, poison in heard.undelivered if poison] == ["t/poison"]
            assert f"{LOSSES} connections ended while it was sent" in heard.undelivered[-1][1]
            outbox.remove("t/poison")
            await heard.until(lambda: offer() and script.taken == {b"t/with-it", b"t/other"})
            assert heard.link.status().dropped["poison"] == 1

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    with_poison = [topics for topics in script.connections if b"t/poison" in topics]
    assert len(with_poison) == LOSSES
    assert with_poison[0] == [b"t/with-it", b"t/poison"]


def test_a_broker_that_is_killed_again_and_again_makes_no_message_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a reconnect storm: each time it has just served somebody else, and each time something is in flight."""
    monkeypatch.setattr(links, "PROVEN_S", 1.0)
    deaths = 2 * LOSSES
    delivered = threading.Event()

    def script(peer: Peer) -> None:
        peer.grant()
        while True:
            if 1 < broker.connections <= deaths:
                peer.patience(0.1)
            number, topic = peer.message()
            if topic == b"t/1" and broker.connections <= deaths:
                return
            peer.send(puback(number))
            if topic == b"t/1":
                delivered.set()

    async def story() -> None:
        async with linked(broker.address) as heard:

            def offer() -> None:
                heard.link.publish("t/up", b"x")
                heard.link.publish("t/1", b"x", token="job/1")

            heard.on_up = offer
            await heard.until(delivered.is_set)
            assert heard.undelivered == []

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert broker.connections == deaths + 1, "and it goes as soon as the broker has calmed down"


def test_a_suspect_that_waits_holds_nobody_up_before_the_connection_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PROVEN_S", 9_999.0)
    came: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.grant()
        while True:
            number, topic = peer.message()
            if broker.connections == 1:
                return
            came.append(topic)
            peer.send(puback(number))

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            heard.link.publish("t/1", b"x", token="job/1")
            await heard.until(lambda: broker.connections == 2 and heard.link.connected)
            assert heard.link.publish("t/1", b"x", token="job/1"), "it is kept for later"
            for n in range(3):
                await heard.until(lambda: heard.link.publish("t/2", b"x"))
                await heard.until(lambda wanted=n + 1: len(came) == wanted)  # type: ignore[misc]
            assert set(came) == {b"t/2"}

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_a_suspect_travels_alone_and_does_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy link has something on its way at every moment: what has to go alone waits for a gap, and gets one."""
    monkeypatch.setattr(links, "PROVEN_S", 0.0)
    seen: list[list[bytes]] = []
    may_answer = threading.Event()

    def script(peer: Peer) -> None:
        topics: list[bytes] = []
        seen.append(topics)
        peer.grant()
        while True:
            number, topic = peer.message()
            topics.append(topic)
            if len(seen) == 1 and len(topics) == 2:
                return
            if len(seen) == 2:
                assert may_answer.wait(10)
                peer.send(puback(number))

    async def story() -> None:
        async with linked(broker.address) as heard:
            await heard.up()
            assert heard.link.publish("t/a", b"x", token="a")
            assert heard.link.publish("t/b", b"x", token="b")
            await heard.until(lambda: len(seen) == 2 and heard.link._proven and heard.link.publish("t/up", b"x"))
            assert heard.link.publish("t/a", b"x", token="a"), "it goes as soon as what is on its way has arrived"
            assert not heard.link.publish("t/b", b"x", token="b"), "another suspect"
            assert not heard.link.publish("t/c", b"x", token="c"), "nothing goes before a suspect"
            assert not heard.link.publish("t/c", b"x")
            may_answer.set()
            await heard.until(lambda: seen[1][:2] == [b"t/up", b"t/a"])
            await heard.until(lambda: heard.link.publish("t/c", b"x", token="c"))
            await heard.until(lambda: b"t/c" in seen[1])

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


@pytest.mark.parametrize("code", [TAKEN_OVER, QUOTA, 0x8B, 0x89, 0x9C])
def test_a_broker_that_hangs_up_for_reasons_of_its_own_makes_nobody_a_suspect(code: int) -> None:
    def script(peer: Peer) -> None:
        peer.grant()
        peer.message()
        peer.send(disconnect(code))

    async def story() -> None:
        async with linked(broker.address) as heard:
            heard.on_up = lambda: heard.link.publish("t/1", b"x", token="job/1")
            await heard.until(lambda: sum(not up for up, _, _ in heard.states) > LOSSES)
            assert heard.undelivered == []

    with ScriptedBroker(script) as broker:
        asyncio.run(story())


def test_each_connection_has_a_will_of_its_own() -> None:
    wills: list[bytes] = []
    numbers = itertools.count(1)

    def script(peer: Peer) -> None:
        wills.append(peer.expect(CONNECT)[-8:])
        peer.send(connack())
        peer.expect(DISCONNECT if len(wills) == 3 else SUBSCRIBE)

    async def story() -> None:
        async with linked(broker.address, will=lambda: ("t/will", b"will %03d" % next(numbers))) as heard:
            await heard.until(lambda: len(wills) == 3)

    with ScriptedBroker(script) as broker:
        asyncio.run(story())
    assert wills == [b"will 001", b"will 002", b"will 003"]
