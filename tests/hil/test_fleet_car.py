"""A fleet car keeps the contracts of the real shells, where the protocol sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent.clock import SystemClock
from agent.core.effects import HandIn, OpenLease, RunSlice, SendHandIn, SettleHandIn
from agent.core.events import EventType, GrantSeen, HandInStored, LeaseOpened, LeaseRefused, SliceStored, VerdictSeen
from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, Verdict
from agent.errors import TrustError
from agent.fleet import messages, operator_messages
from agent.fleet.desk import Desk
from agent.fleet.orders import Orders
from agent.store import Store
from agent.trust import statement
from agent.trust.keys import FileSigner
from hil.fleet.car import compressed
from hil.fleet.rows import Rows
from hil.fleet.shells import Settled, Shells, Work

GRANT = Grant(
    job="job-1",
    epoch=1,
    nonce="a" * 32,
    customer="acme",
    package="fleet-work",
    package_sha256="b" * 64,
    input_url="",
    input_sha256="c" * 64,
    input_bytes=1,
    items=4,
    slice_items=2,
    slices=(0, 1),
    ttl_ms=60_000,
    price_micro_per_item=10,
    currency="USD",
    ticket_sha256="d" * 64,
)
FACTS = LeaseFacts(1_000, 2_000, 5, "simulated", "open")


class Wire:
    """Takes every message, or none."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.up = True

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        if self.up:
            self.sent.append((topic, payload))
        return self.up

    def spread(self, spread_ms: int) -> None:
        raise AssertionError(f"nobody spoke of a spread of {spread_ms} ms")


class Bench:
    """Shells with a wire and an ear."""

    def __init__(self) -> None:
        self.events: list[EventType] = []
        self.settled: list[Settled] = []
        self.wire, self.key = Wire(), FileSigner(generate_private_key(SECP256R1()))
        clock = SystemClock()
        desk = Desk(
            unit="car-1",
            cell="00",
            run="b",
            dispatcher_keys={},
            orders=Orders(Rows(), clock, "b", lambda: True),
            emit=self.events.append,
            clock=clock,
        )
        desk.attach(self.wire)
        self.shells = Shells(
            "car-1",
            desk=desk,
            signer=self.key,
            emit=self.events.append,
            clock=clock,
            work=Work(slice_s=0.001),
            settled=self.settled,
        )

    async def until(self, kind: type, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while sum(isinstance(event, kind) for event in self.events) < count:  # noqa: ASYNC110 - shells only emit
                await asyncio.sleep(0.001)

    async def finish_lease(self) -> HandInStored:
        self.shells.perform(OpenLease(grant=GRANT))
        for index in GRANT.slices:
            first, last = GRANT.span(index)
            self.shells.perform(RunSlice(key=GRANT.key, index=index, first=first, last=last))
            await self.until(SliceStored, index + 1)
        self.shells.perform(HandIn(grant=GRANT, kind=HandInKind.RESULT, why=None, detail="", facts=FACTS))
        stored = self.events[-1]
        assert isinstance(stored, HandInStored)
        return stored


def with_bench(test: Callable[[Bench], object]) -> None:
    async def run() -> None:
        result = test(Bench())
        assert asyncio.iscoroutine(result)
        await result

    asyncio.run(run())


def test_a_hand_in_is_signed_and_outlives_an_outage_until_its_verdict() -> None:
    async def life(bench: Bench) -> None:
        stored = await bench.finish_lease()
        send = SendHandIn(key=GRANT.key, credit=1, have=())
        bench.wire.up = False
        bench.shells.perform(send)
        assert bench.wire.sent == []
        assert list(bench.shells.outbox) == [GRANT.key]
        bench.wire.up = True
        bench.shells.perform(send)
        topic, body = bench.wire.sent[0]
        assert topic == "dw/v1/u/00/car-1/result"
        result = messages.decode(body, messages.Result)
        assert result.credit == 1
        envelope, certificate = map(msgspec.json.encode, (result.statement, result.session))
        said, _session = statement.verify_statement(envelope, certificate, {bench.key.keyid: bench.key.public_key()})
        assert said.lease.job == "job-1"
        verdict = SettleHandIn(key=GRANT.key, verdict=Verdict.SETTLED, reason="", paid_micro=40, envelope=b"")
        bench.shells.perform(verdict)
        assert bench.shells.outbox == {}
        assert bench.settled == [Settled("job-1", 1, Verdict.SETTLED, 40, stored.statement_sha256)]
        bench.shells.perform(verdict)
        assert len(bench.settled) == 1

    with_bench(life)


def test_a_nonce_opens_one_lease() -> None:
    async def replay(bench: Bench) -> None:
        bench.shells.perform(OpenLease(grant=GRANT))
        assert isinstance(bench.events[-1], LeaseOpened)
        bench.shells.perform(OpenLease(grant=msgspec.structs.replace(GRANT, epoch=2)))
        refused = bench.events[-1]
        assert isinstance(refused, LeaseRefused)
        assert refused.replayed
        bench.shells.perform(OpenLease(grant=GRANT))
        assert isinstance(bench.events[-1], LeaseOpened)

    with_bench(replay)


def test_counters_rise_and_every_car_signs_with_its_own_key() -> None:
    async def two(bench: Bench) -> None:
        await bench.finish_lease()
        other = Bench()
        await other.finish_lease()
        result = messages.decode(bench.shells.outbox[GRANT.key].body, messages.Result)
        envelope, certificate = map(msgspec.json.encode, (result.statement, result.session))
        assert statement.verify_statement(envelope, certificate, {bench.key.keyid: bench.key.public_key()})
        with pytest.raises(TrustError):
            statement.verify_statement(envelope, certificate, {other.key.keyid: other.key.public_key()})
        assert bench.shells.made == 1

    with_bench(two)


def test_rows_are_kept_in_memory() -> None:
    async def keep() -> None:
        rows, order = Rows(), operator_messages.DemandMessage(unit="car-1", issued_wall_ms=1, stop_for_s=60)
        assert await rows.call(Store.recall, "demand", operator_messages.DemandMessage) is None
        await rows.call(Store.remember, "demand", order)
        assert await rows.call(Store.recall, "demand", operator_messages.DemandMessage) == order
        await rows.call(Store.forget, "demand")
        assert await rows.call(Store.recall, "demand", operator_messages.DemandMessage) is None
        with pytest.raises(NotImplementedError):
            await rows.call(Store.probe)

    asyncio.run(keep())


def test_only_the_rhythm_of_renewals_is_compressed() -> None:
    long = msgspec.structs.replace(GRANT, ttl_ms=1_800_000, renew_ms=600_000)
    seen = GrantSeen(at_ms=1, rid="r", grant=long, retry_ms=0)
    sooner = compressed(seen, 10.0)
    assert isinstance(sooner, GrantSeen)
    assert sooner.grant == msgspec.structs.replace(long, renew_ms=60_000)
    verdict = VerdictSeen(
        at_ms=1,
        key=JobKey("j", 1),
        verdict=Verdict.SETTLED,
        reason="",
        paid_micro=0,
        statement_sha256="",
        retry_ms=0,
        envelope=b"",
        next_grant=long,
    )
    told = compressed(verdict, 10.0)
    assert isinstance(told, VerdictSeen)
    assert told.next_grant is not None
    assert told.next_grant.renew_ms == 60_000
    assert compressed(GrantSeen(at_ms=1, rid="r", grant=GRANT, retry_ms=0), 10.0).grant == GRANT  # type: ignore[union-attr]
