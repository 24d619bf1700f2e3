"""A real notary on a real store, and a real dispatcher that requires a witness; what is between them drops checkpoints.

The hand-ins are a test car's, with the places that their statements have in the store's ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from structlog.testing import capture_logs

from agent import ledger_view
from agent import notary as notary_module
from agent.core.events import EventType
from agent.core.model import HandInKind, Spent, Verdict
from agent.fleet.desk import Desk as AgentDesk
from agent.fleet.messages import Result, UploadRef, VerdictMessage, WaitsFor
from agent.fleet.orders import Orders
from agent.notary import Notary, ThreadedKey
from agent.rows import HandInRow, StoredSlice
from agent.store import Store, StoreThread
from hil.dispatcher.pay import accounts
from hil.dispatcher.unwitnessed import Bound
from tests.conftest import FixedClock
from tests.core.world import grant as grant_of
from tests.hil.honest_car import PRICE, Desk, bent

LEAVES = 20
"""What may stand unwitnessed here, so that it is reached soon."""


class Fleet:
    """Both sides of a car, and the broker between them; `drops` are the verbs that it lets fall."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk(folder / "dispatcher", unwitnessed=Bound(leaves=LEAVES))
        self.car = self.desk.new_car("car-1")
        self.car.peer = self
        self.drops: set[str] = set()
        self.store, self.clock = StoreThread(folder / "driveway.db"), FixedClock()
        self.events: list[EventType] = []
        self.agent = AgentDesk(
            unit=self.car.unit,
            cell=self.car.cell,
            run="b00t",
            dispatcher_keys=self.desk.trusted(),
            orders=Orders(self.store, self.clock, "b00t", lambda: True),
            emit=self.events.append,
            clock=self.clock,
            on_witness=lambda message: self.notary.witnessed(message),  # noqa: PLW0108 - it is made further down
            on_witness_wanted=lambda: self.notary.wanted(),  # noqa: PLW0108 - as above
        )
        self.agent.attach(self)
        self.notary = Notary(
            unit=self.car.unit,
            key_epoch=1,
            boot="b00t",
            key=ThreadedKey(self.car.signer),
            witnesses=self.desk.trusted(),
            clock=self.clock,
            store=self.store,
            send=self.agent.checkpoint,
        )
        self.number = 0

    # --- the broker ----------------------------------------------------------------------------------------------

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        """From the agent; what is answered goes back to it."""
        assert (qos, token) == (1, "")
        assert expiry_s is not None
        if topic.rpartition("/")[2] not in self.drops:
            self.desk.tell(topic, payload)
            while self.desk.sent:
                self.hear()
        return True

    def spread(self, spread_ms: int) -> None:
        """There are no other cars."""

    def tell(self, topic: str, payload: bytes) -> None:
        self.desk.tell(topic, payload)

    def hear(self) -> tuple[str, bytes]:
        """What the dispatcher says is heard by the agent, and by who hands in for it."""
        topic, envelope = self.desk.hear()
        self.agent.receive(topic, envelope)
        return topic, envelope

    def enrol(self, envelope: bytes) -> bytes:
        return self.desk.enrol(envelope)

    def bring(self, upload: UploadRef, body: bytes) -> str:
        return self.desk.bring(upload, body)

    def trusted(self) -> Mapping[str, EllipticCurvePublicKey]:
        return self.desk.trusted()

    # --- the car's work ------------------------------------------------------------------------------------------

    async def work(self) -> tuple[Result, VerdictMessage]:
        """A lease, whose statement is a leaf before it is sent."""
        self.desk.add_job()
        granted, kept = self.car.must_request(), grant_of(self.number)
        self.number += 1
        places: list[int] = []

        def build(counter: int, log_index: int, _slices: list[StoredSlice]) -> HandInRow:
            places.append(log_index)
            return HandInRow(HandInKind.RESULT, b"", f"statement {counter}".encode(), "e" * 64, 1)

        def close(store: Store) -> None:
            store.open_lease(kept, 1)
            store.hand_in(kept, why=None, spent=Spent(0, 0), wall_ms=1, build=build)

        await self.store.call(close)
        result = self.car.result(granted, bend=bent(log_index=places[0]))
        return result, await self.hand_in(result)

    async def hand_in(self, result: Result) -> VerdictMessage:
        """Once more, or first; a verdict that settles is a leaf, too."""
        verdict, last = self.car.hand_in(result), grant_of(self.number - 1)
        if verdict.verdict is Verdict.SETTLED:
            await self.store.call(
                Store.settle, last.key, verdict=verdict.verdict, reason="", paid_micro=1, envelope=b"verdict"
            )
        return verdict

    async def unpaid_since(self) -> str:
        """As `driveway status` shows it."""
        return (await self.store.call(ledger_view.look)).unpaid_since

    def earned(self) -> int:
        return sum(one.settled_micro for one in accounts(self.desk.book.database))


def told(folder: Path, story: Callable[[Fleet], Awaitable[None]]) -> None:
    async def run() -> None:
        fleet = Fleet(folder)
        await fleet.store.open()
        await fleet.notary.begin()
        running = asyncio.get_running_loop().create_task(fleet.notary.run(fleet.events.append))
        try:
            await story(fleet)
            assert fleet.desk.service.counts["crashed"] == 0
            assert fleet.desk.book.ledgers.faults(0, 9) == []
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await fleet.notary.close()
            await fleet.store.close()
            fleet.desk.book.close()

    asyncio.run(run())


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110 - any condition, also one of files
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at once, and signs often."""
    monkeypatch.setattr(notary_module, "LOOK_S", 0.01)
    monkeypatch.setattr(notary_module, "CHECKPOINT_LEAVES", LEAVES // 4)


async def until_put_off(fleet: Fleet) -> tuple[Result, int]:
    """Work until the dispatcher wants to see the ledger; the hand-in that waits, and how many did not."""
    for settled in range(LEAVES):
        result, verdict = await fleet.work()
        if verdict.verdict is not Verdict.SETTLED:
            assert (verdict.verdict, verdict.waits_for) == (Verdict.LATER, WaitsFor.WITNESS)
            return result, settled
    raise AssertionError("it was never put off")


def test_a_car_that_is_never_witnessed_earns_no_more_than_fits_into_the_bound(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        fleet.drops = {"checkpoint"}
        result, settled = await until_put_off(fleet)
        assert settled == LEAVES // 2
        await until(lambda: _is(fleet, unpaid=True))
        for _ in range(5):
            fleet.clock.now_ms += 60_000
            assert (await fleet.hand_in(result)).waits_for is WaitsFor.WITNESS
            assert fleet.car.request() is None
        assert fleet.earned() == settled * 9 * PRICE

    told(tmp_path, story)


def test_a_car_whose_checkpoints_were_dropped_for_long_recovers_by_itself(tmp_path: Path) -> None:
    async def story(fleet: Fleet) -> None:
        fleet.drops = {"checkpoint"}
        result, settled = await until_put_off(fleet)
        fleet.clock.now_ms += 60_000
        assert (await fleet.hand_in(result)).verdict is Verdict.LATER
        await until(lambda: _is(fleet, unpaid=True))
        fleet.drops = set()
        fleet.clock.now_ms += 60_000
        assert (await fleet.hand_in(result)).verdict is Verdict.LATER  # which makes it say its ledger anew
        await until(lambda: _is(fleet, unpaid=False))
        verdict = await fleet.hand_in(result)
        assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 9 * PRICE)
        for _ in range(LEAVES):
            assert (await fleet.work())[1].verdict is Verdict.SETTLED
            await asyncio.sleep(0.02)
        assert fleet.earned() == (settled + 1 + LEAVES) * 9 * PRICE

    with capture_logs() as logs:
        told(tmp_path, story)
    events = [one["event"] for one in logs]
    for once in ("hand_ins_wait_for_witness", "witness_came", "unit_put_off", "unit_witnessed_again"):
        assert events.count(once) == 1, once


async def _is(fleet: Fleet, *, unpaid: bool) -> bool:
    return bool(await fleet.unpaid_since()) == unpaid
