"""Too much at once: what is dropped, in which order, and that what is decided is said, or nobody is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.core.model import Verdict
from agent.fleet.messages import Capability, Request, encode
from hil.dispatcher import pump as pump_module
from hil.dispatcher.database import SqliteDatabase
from hil.dispatcher.pump import Intake, Outbox, pump
from tests.hil.honest_car import PACKAGE, Car, Desk


def topic(verb: str, unit: str = "car-1") -> str:
    return f"dw/v1/u/00/{unit}/{verb}"


def intake(capacity: int = 4) -> tuple[Intake, list[float]]:
    now_s = [0.0]
    return Intake(lambda: now_s[0], capacity=capacity), now_s


def test_requests_are_dropped_first_and_hand_ins_last() -> None:
    async def scenario() -> None:
        queue, _ = intake()
        for verb in ("result", "request", "renew", "status", "yield", "result", "result"):
            queue.offer(topic(verb), verb.encode())
        assert queue.dropped == {"request": 1, "renew": 1, "status": 1}
        assert [body for _, body in queue.take()] == [b"result", b"yield", b"result", b"result"]
        for number in range(6):
            queue.offer(topic("result"), b"%d" % number)
        assert queue.dropped["hand-in"] == 2
        assert [body for _, body in queue.put_off()] == [b"0", b"1"]
        assert queue.put_off() == []
        assert [body for _, body in queue.take(3)] == [b"2", b"3", b"4"]

    asyncio.run(scenario())


def test_hand_ins_are_taken_first_and_old_requests_not_at_all() -> None:
    async def scenario() -> None:
        queue, now_s = intake(100)
        queue.offer(topic("request"), b"old")
        now_s[0] = 31.0
        queue.offer(topic("request"), b"new")
        queue.offer(topic("status"), b"up")
        queue.offer(topic("yield"), b"work")
        queue.offer("rubbish", b"rubbish")
        assert [body for _, body in queue.take()] == [b"work", b"up", b"new", b"rubbish"]
        assert queue.dropped == {"request too old": 1}

    asyncio.run(scenario())


def test_memory_is_bounded_whatever_comes() -> None:
    async def scenario() -> None:
        queue, _ = intake(100)
        for number in range(5_000):
            queue.offer(topic(("request", "result", "status", "x")[number % 4], f"car-{number % 50}"), b"x")
        assert len(queue) == 100
        assert len(queue.put_off()) == pump_module.PUT_OFF

    asyncio.run(scenario())


def test_one_unit_that_talks_without_end_starves_nobody() -> None:
    async def scenario() -> None:
        queue, now_s = intake(4096)
        for _ in range(20_000):
            queue.offer(topic("result", "noisy"), b"junk")
        queue.offer(topic("request", "quiet"), b"ask")
        assert queue.dropped == {"unit talks too much": 20_000 - pump_module.UNIT_BURST}
        taken = [queue.take() for _ in range(10)]
        assert b"ask" in [body for batch in taken for _, body in batch]
        now_s[0] += 1.0
        for _ in range(1_000):
            queue.offer(topic("result", "noisy"), b"junk")
        assert len(queue) == pump_module.UNIT_MESSAGES_PER_S

    asyncio.run(scenario())


def test_whom_to_be_fair_to_is_remembered_within_bounds() -> None:
    fairness = pump_module.Fairness(lambda: 0.0)
    assert all(fairness.admits(f"unit-{number}") for number in range(pump_module.UNITS_REMEMBERED + 1_000))
    assert len(fairness._buckets) == pump_module.UNITS_REMEMBERED


class SlowLink:
    """Takes so many messages at a time as a broker with a small Receive Maximum."""

    def __init__(self, at_once: int) -> None:
        self.connected, self.at_once, self.taken = True, at_once, [0]
        self.heard: list[bytes] = []
        self._more = asyncio.Event()

    def publish(
        self, topic: str, payload: bytes, *, expiry_s: int | None = None, token: str = "", retain: bool = False
    ) -> bool:
        if not self.connected or self.taken[0] >= self.at_once:
            return False
        self.taken[0] += 1
        self.heard.append(payload)
        self._more.set()
        return True

    async def has_heard(self, count: int) -> None:
        while len(self.heard) < count:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), 20)


async def acknowledge(link: SlowLink) -> None:
    while True:
        await asyncio.sleep(0)
        link.taken[0] = 0


def test_no_answer_is_lost_because_the_link_takes_few() -> None:
    async def scenario() -> None:
        outbox, link = Outbox(asyncio.get_running_loop(), capacity=50), SlowLink(4)
        outbox.link = link
        acknowledging = asyncio.create_task(acknowledge(link))
        for number in range(90):
            assert outbox.put("t", b"%d" % number, 60)
        await asyncio.sleep(0)
        assert not outbox.has_room.is_set(), "no batch is begun until it drains"
        await asyncio.wait_for(outbox.has_room.wait(), 20)
        await link.has_heard(90)
        assert link.heard == [b"%d" % number for number in range(90)]
        assert outbox.dropped == {}
        acknowledging.cancel()

    asyncio.run(scenario())


def test_answers_die_with_the_link_and_overflow_is_counted() -> None:
    async def scenario() -> None:
        outbox, link = Outbox(asyncio.get_running_loop(), capacity=3), SlowLink(1)
        outbox.link = link
        taken = [outbox.put("t", b"%d" % number, None) for number in range(8)]
        assert taken == [True] * 6 + [False] * 2
        link.connected = False
        await asyncio.wait_for(outbox.has_room.wait(), 20)
        await asyncio.sleep(0.05)
        assert outbox.dropped["outbox full"] == 2
        assert outbox.dropped["link down"] + len(link.heard) == 6
        assert outbox.has_room.is_set()

    asyncio.run(scenario())


class RefusingLink(SlowLink):
    """A broker without retained messages: what it must not be sent is never taken, and told of by its token."""

    def __init__(self) -> None:
        super().__init__(10**6)
        self.outbox: Outbox | None = None

    def publish(
        self, topic: str, payload: bytes, *, expiry_s: int | None = None, token: str = "", retain: bool = False
    ) -> bool:
        if retain:
            assert self.outbox is not None
            assert token
            asyncio.get_running_loop().call_soon(self.outbox.undelivered, token, "no retained messages here", False)
            return False
        return super().publish(topic, payload, expiry_s=expiry_s, token=token)


def test_what_the_broker_never_takes_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        outbox, link = Outbox(loop), RefusingLink()
        outbox.link, link.outbox = link, outbox
        for number in range(256):
            assert outbox.put(f"dw/v1/b/{number:02x}/pace", b"pace", None, retain=True)
        assert outbox.put("dw/v1/d/car/grant", b"grant", 60)
        await asyncio.wait_for(link.has_heard(1), 5)
        assert link.heard == [b"grant"]
        assert outbox.dropped == {"never taken": 256}
        outbox.undelivered("out-12345", "refused by its PUBACK", False)
        assert outbox.dropped == {"never taken": 257}

    monkeypatch.setattr(pump_module, "STUCK_S", 3600.0)
    asyncio.run(scenario())


class LeavingLink:
    """Says when it was left and joined again."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def start(self) -> None:
        self.did.append("start")

    async def close(self) -> None:
        self.did.append("close")


def test_who_lost_the_database_leaves_the_broker_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "TICK_S", 0.01)

    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.add_job()
        car = desk.new_car("car-1")
        desk.book.database.rows("PRAGMA busy_timeout = 1")
        other = SqliteDatabase(tmp_path, lambda: 0)
        loop, link, heard = asyncio.get_running_loop(), LeavingLink(), SlowLink(10**6)
        queue, outbox = Intake(loop.time), Outbox(loop)
        outbox.link = heard
        desk.service.answers.publish = outbox.put
        where = f"dw/v1/u/{car.cell}/{car.unit}/request"

        async def until(done: Callable[[], bool]) -> None:
            while not done():  # noqa: ASYNC110 - what it waits for has no event
                await asyncio.sleep(0.005)

        with ThreadPoolExecutor(1) as owner:
            other._begin()
            queue.offer(where, request())
            pumping = asyncio.create_task(pump(desk.service, queue, outbox, owner, link))
            await asyncio.wait_for(until(lambda: link.did == ["close"]), 20)
            queue.offer(where, request())
            await asyncio.sleep(0.1)
            assert link.did == ["close"]
            assert len(queue) == 1, "it waits for the database, too"
            other._end("ROLLBACK")
            await asyncio.wait_for(until(lambda: link.did == ["close", "start"]), 20)
            await asyncio.wait_for(heard.has_heard(1), 20)
            pumping.cancel()
        other.close()
        desk.book.close()

    asyncio.run(scenario())


def request() -> bytes:
    capability = Capability(device_class="x", executor="y", packages=(PACKAGE.sha256,))
    return encode(Request(rid="r", have=(), credit=1, cap=capability))


def test_a_batch_is_one_transaction(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    cars = [desk.new_car(f"car-{number}") for number in range(20)]
    for _ in cars:
        desk.add_job()
    commits = []
    end = desk.book.database._end
    monkeypatch.setattr(desk.book.database, "_end", lambda word: commits.append(word) or end(word))  # type: ignore[func-returns-value]
    desk.service.handle([(f"dw/v1/u/{car.cell}/{car.unit}/request", request()) for car in cars])
    assert commits.count("COMMIT") <= 3, "one for the batch, two for what was due: leases that ran out, pay that aged"
    assert all(car.hear_grant().job is not None for car in cars)


def test_one_message_that_fails_spoils_no_other(
    desk: Desk, car: Car, other: Car, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in a batch undoes all of it; each message is then handled by itself, and nobody is told twice."""
    desk.add_job()
    desk.add_job()
    grant = car.must_request()
    result = encode(car.result(grant))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    batch = [
        (f"dw/v1/u/{car.cell}/{car.unit}/result", result),
        (f"dw/v1/u/{car.cell}/{car.unit}/status", b'{"state":"up","boot":"b","conn":1,"version":"1"}'),
        (f"dw/v1/u/{other.cell}/{other.unit}/request", request()),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(desk.book.units, "note_status", broken)
        desk.service.handle(batch)
    assert desk.service.counts.pop("crashed") == 1
    assert car.hear_verdict().verdict is Verdict.SETTLED
    assert other.hear_grant().job is not None
    assert desk.sent == []


def test_the_pump_serves_and_puts_off(tmp_path: Path) -> None:
    """End to end without a broker: a flood of copies of one hand-in, beyond what there is room for."""

    async def scenario() -> None:
        desk = Desk(tmp_path)
        desk.add_job()
        car = desk.new_car("car-1")
        result = encode(car.result(car.must_request()))
        loop = asyncio.get_running_loop()
        queue, outbox, link = Intake(loop.time, capacity=10), Outbox(loop), SlowLink(10**6)
        outbox.link = link
        desk.service.answers.publish = outbox.put
        where = f"dw/v1/u/{car.cell}/{car.unit}/result"
        for _ in range(15):
            queue.offer(where, result)
        with ThreadPoolExecutor(1) as owner:
            pumping = asyncio.create_task(pump(desk.service, queue, outbox, owner))
            await link.has_heard(15)
            pumping.cancel()
        desk.sent = [(f"dw/v1/d/{car.unit}/verdict", payload) for payload in link.heard]
        verdicts = [car.hear_verdict() for _ in range(15)]
        kinds = [verdict.verdict for verdict in verdicts]
        assert kinds == [Verdict.LATER] * 5 + [Verdict.SETTLED] + [Verdict.DUPLICATE] * 9
        assert all(verdict.retry_s > 0 for verdict in verdicts[:5])
        desk.book.close()

    asyncio.run(scenario())
