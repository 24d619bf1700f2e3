"""Price curves and demand orders: signed, newest only, each once, over restarts and reboots; and small enough."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import DemandSeen, EventType, PricesSeen
from agent.errors import StoreError
from agent.fleet import messages, operator_messages
from agent.fleet.desk import Desk
from agent.fleet.orders import Orders
from agent.store import Store, StoreThread
from agent.trust import dsse
from agent.trust.keys import FileSigner
from tests.conftest import FixedClock

UNIT = "car-0001"
TOPIC = f"dw/v1/d/{UNIT}/config"
NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def slots(*prices: int, start_ms: int = NOW_MS, length_ms: int = HOUR_MS) -> tuple[operator_messages.PricesSlot, ...]:
    return tuple(
        operator_messages.PricesSlot(start_ms + n * length_ms, start_ms + (n + 1) * length_ms, price)
        for n, price in enumerate(prices)
    )


def prices(issued_ms: int = NOW_MS, **changes: object) -> operator_messages.PricesMessage:
    """A curve of three hours."""
    fields = {"unit": UNIT, "issued_wall_ms": issued_ms, "expires_wall_ms": issued_ms + DAY_MS, "slots": slots(1, 2, 3)}
    return operator_messages.PricesMessage(**(fields | changes))  # type: ignore[arg-type]


def demand(issued_ms: int = NOW_MS, stop_for_s: int = 900) -> operator_messages.DemandMessage:
    return operator_messages.DemandMessage(unit=UNIT, issued_wall_ms=issued_ms, stop_for_s=stop_for_s, detail="peak")


class Listening:
    """A desk that is not connected to anything, with a real store, and what it told the core."""

    def __init__(
        self, folder: Path, signer: FileSigner, *, boot: str = "boot-1", now_ms: int = HOUR_MS, trusted: bool = True
    ) -> None:
        self.clock, self.events = FixedClock(now_ms), list[EventType]()
        self.store = StoreThread(folder / "driveway.db")
        self.orders = Orders(self.store, self.clock, boot, lambda: trusted)
        self._signer = signer
        self.desk = Desk(
            unit=UNIT,
            cell="00",
            run=boot,
            dispatcher_keys={signer.keyid: signer.public_key()},
            orders=self.orders,
            emit=self.events.append,
            clock=self.clock,
        )

    def hear(self, message: object, signer: FileSigner | None = None, payload_type: str = "") -> None:
        kind = (
            operator_messages.DEMAND_TYPE
            if isinstance(message, operator_messages.DemandMessage)
            else operator_messages.PRICES_TYPE
        )
        body = dsse.sign(payload_type or kind, msgspec.json.encode(message), signer or self._signer)
        self.desk.receive(TOPIC, body)


def heard(
    folder: Path, signer: FileSigner, story: Callable[[Listening], Awaitable[None]], **run: object
) -> list[EventType]:
    """One run of the agent; what it restored comes first."""

    async def tell() -> list[EventType]:
        one = Listening(folder, signer, **run)  # type: ignore[arg-type]
        await one.store.open()
        try:
            one.events += await one.orders.restore()
            await story(one)
            await one.orders.close()
        finally:
            await one.store.close()
        return one.events

    return asyncio.run(tell())


async def nothing(_one: Listening) -> None:
    """Only what is restored."""


def test_orders_become_events_and_a_duplicate_is_no_news(tmp_path: Path, dispatcher_signer: FileSigner) -> None:
    async def story(one: Listening) -> None:
        for _ in range(3):
            one.hear(prices())
            one.hear(demand())
        assert not one.desk.refused, "a broker may repeat, and may retain"

    curve, stop = heard(tmp_path, dispatcher_signer, story)
    assert isinstance(curve, PricesSeen)
    assert [(slot.start_wall_ms, slot.price_micro_per_kwh) for slot in curve.slots] == [
        (NOW_MS + n * HOUR_MS, n + 1) for n in range(3)
    ]
    assert (curve.issued_wall_ms, curve.expires_wall_ms) == (NOW_MS, NOW_MS + DAY_MS)
    assert stop == DemandSeen(at_ms=HOUR_MS, stop_for_ms=900_000, detail="peak")


def test_an_older_order_is_a_replay_also_after_a_restart(tmp_path: Path, dispatcher_signer: FileSigner) -> None:
    async def first(one: Listening) -> None:
        one.hear(demand(NOW_MS, 900))
        one.hear(demand(NOW_MS + 1, 0))
        one.hear(prices(NOW_MS + 5))
        one.hear(demand(NOW_MS, 900))
        one.hear(prices(NOW_MS + 4))
        assert one.desk.refused == {"config: replay": 2}

    async def second(one: Listening) -> None:
        one.hear(demand(NOW_MS, 900))
        one.hear(prices(NOW_MS + 4))
        assert one.desk.refused == {"config: replay": 2}
        one.hear(demand(NOW_MS + 2, 60))

    events = heard(tmp_path, dispatcher_signer, first)
    assert [type(event) for event in events] == [DemandSeen, DemandSeen, PricesSeen]
    curve, over, stop = heard(tmp_path, dispatcher_signer, second)
    assert isinstance(curve, PricesSeen)
    assert isinstance(over, DemandSeen)
    assert isinstance(stop, DemandSeen)
    assert (curve.issued_wall_ms, over.stop_for_ms, stop.stop_for_ms) == (NOW_MS + 5, 0, 60_000)


def test_a_stop_goes_on_over_a_restart_and_a_reboot(tmp_path: Path, dispatcher_signer: FileSigner) -> None:
    async def story(one: Listening) -> None:
        one.hear(demand(NOW_MS, 900))

    heard(tmp_path, dispatcher_signer, story)
    (left,) = heard(tmp_path, dispatcher_signer, nothing, now_ms=HOUR_MS + 300_000)
    assert isinstance(left, DemandSeen)
    assert left.stop_for_ms == 600_000
    # The test's wall clock follows its boot time, so a boot time that begins anew is a wall clock that went back.
    (reset,) = heard(tmp_path, dispatcher_signer, nothing, boot="boot-2", now_ms=5)
    assert isinstance(reset, DemandSeen)
    assert reset.stop_for_ms == 900_000, "whatever the clock says, not longer than the stop itself"
    (later,) = heard(tmp_path, dispatcher_signer, nothing, boot="boot-2", now_ms=HOUR_MS + 800_000)
    assert isinstance(later, DemandSeen)
    assert later.stop_for_ms == 100_000
    (over,) = heard(tmp_path, dispatcher_signer, nothing, boot="", now_ms=HOUR_MS + 901_000)
    assert isinstance(over, DemandSeen)
    assert over.stop_for_ms == 0


def stops(events: list[EventType]) -> list[int]:
    """The stops among these, in seconds."""
    return [event.stop_for_ms // 1000 for event in events if isinstance(event, DemandSeen)]


def test_a_stop_heard_under_a_wrong_clock_begins_anew_after_a_reboot_and_that_once(
    tmp_path: Path, dispatcher_signer: FileSigner
) -> None:
    """Its wall time means nothing: under a clock of years ago it would be over at once."""

    async def story(one: Listening) -> None:
        one.clock.wall_ms = lambda: NOW_MS - 5 * 365 * DAY_MS  # type: ignore[method-assign]
        one.hear(demand(NOW_MS, 900))

    heard(tmp_path, dispatcher_signer, story, trusted=False)
    assert stops(heard(tmp_path, dispatcher_signer, nothing, boot="boot-2", now_ms=5_000)) == [900]
    assert stops(heard(tmp_path, dispatcher_signer, nothing, boot="boot-2", now_ms=605_000)) == [300], "a restart"
    assert stops(heard(tmp_path, dispatcher_signer, nothing, boot="boot-3", now_ms=5_000)) == [900]


def test_after_a_reboot_the_dispatcher_says_what_is_left_of_a_stop(
    tmp_path: Path, dispatcher_signer: FileSigner
) -> None:
    async def first(one: Listening) -> None:
        one.hear(demand(NOW_MS, 900))

    async def again(one: Listening) -> None:
        for left_s in (700, 700, 900, 650, 900):
            one.hear(demand(NOW_MS, left_s))
        assert not one.desk.refused

    heard(tmp_path, dispatcher_signer, first)
    late_ms = HOUR_MS + 5 * HOUR_MS
    events = heard(tmp_path, dispatcher_signer, again, boot="boot-2", now_ms=late_ms)
    assert stops(events) == [0, 700, 650], "the wall clock was wrong; then only less is news"
    assert stops(heard(tmp_path, dispatcher_signer, nothing, boot="boot-2", now_ms=late_ms + 50_000)) == [600]


def test_a_stop_that_began_anew_is_made_shorter_and_never_longer(tmp_path: Path, dispatcher_signer: FileSigner) -> None:
    async def first(one: Listening) -> None:
        one.hear(demand(NOW_MS, 900))

    async def again(one: Listening) -> None:
        for left_s in (900, 300, 0, 900):
            one.hear(demand(NOW_MS, left_s))

    heard(tmp_path, dispatcher_signer, first, trusted=False)
    assert stops(heard(tmp_path, dispatcher_signer, again, boot="boot-2", now_ms=5)) == [900, 300, 0]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("prices", '{"v":2,"unit":"u","issued_wall_ms":1,"expires_wall_ms":2,"slots":[{"s":1}]}'),
        ("demand", '{"order":{"v":2,"shed_to_w":40},"boot":"boot-1"}'),
        ("demand", "\x00"),
    ],
)
def test_an_order_in_the_store_that_is_not_understood_keeps_no_daemon_from_starting(
    tmp_path: Path, dispatcher_signer: FileSigner, row: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def write(one: Listening) -> None:
        await one.store.call(lambda store: store._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (row, text)))

    async def newer(one: Listening) -> None:
        one.hear(prices())
        one.hear(demand(NOW_MS, 0))

    heard(tmp_path, dispatcher_signer, write)
    stop_s = [86_400] if row == "demand" else []
    assert stops(heard(tmp_path, dispatcher_signer, nothing)) == stop_s, "a stop is taken for the longest there is"
    left_s = [86_300] if row == "demand" else []
    assert stops(heard(tmp_path, dispatcher_signer, nothing, now_ms=HOUR_MS + 100_000)) == left_s
    said = capsys.readouterr()
    assert (said.out + said.err).count("order_not_understood") == 1, "told once"
    curve, last = heard(tmp_path, dispatcher_signer, newer)[-2:]
    assert isinstance(curve, PricesSeen)
    assert stops([last]) == [0]
    assert stops(heard(tmp_path, dispatcher_signer, nothing)) == [0]


def test_a_disk_that_refuses_does_not_keep_an_order_from_counting(
    tmp_path: Path, dispatcher_signer: FileSigner, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(one: Listening) -> None:
        def refuse(store: Store) -> None:
            store._db.execute("PRAGMA query_only = 1")

        await one.store.call(refuse)
        one.hear(demand())
        with pytest.raises(StoreError):
            await one.store.call(Store.probe)

    assert len(heard(tmp_path, dispatcher_signer, story)) == 1
    said = capsys.readouterr()
    assert (said.out + said.err).count("order_not_kept") == 1


BROKEN = {
    "overlapping": {"slots": (*slots(1), *slots(2, start_ms=NOW_MS + HOUR_MS - 1))},
    "unsorted": {"slots": slots(1, 2)[::-1]},
    "twice": {"slots": slots(1) * 2},
    "backwards": {"slots": (operator_messages.PricesSlot(NOW_MS + 5, NOW_MS, 1),)},
    "empty slot": {"slots": (operator_messages.PricesSlot(NOW_MS, NOW_MS, 1),)},
    "absurdly long": {"slots": slots(1, length_ms=DAY_MS + 1)},
    "absurdly dear": {"slots": slots(10_000_001)},
    "absurdly cheap": {"slots": slots(-10_000_001)},
    "long ago": {"slots": slots(1, start_ms=NOW_MS - DAY_MS - 1)},
    "far ahead": {"slots": slots(1, start_ms=NOW_MS + 9 * DAY_MS)},
    "too many": {"slots": slots(*[1] * 257, length_ms=1_000)},
    "expired when issued": {"expires_wall_ms": NOW_MS},
    "never expires": {"expires_wall_ms": NOW_MS + 8 * DAY_MS + 1},
    "another unit": {"unit": "car-0002"},
    "another version": {"v": 2},
    "a price that is no whole number": {"slots": ((NOW_MS, NOW_MS + 5, 1.5),)},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN.keys())
def test_a_curve_that_cannot_be_is_refused(
    tmp_path: Path, dispatcher_signer: FileSigner, changes: dict[str, object]
) -> None:
    async def story(one: Listening) -> None:
        one.hear(msgspec.to_builtins(prices()) | changes)
        assert sum(one.desk.refused.values()) == 1
        one.hear(prices())

    assert len(heard(tmp_path, dispatcher_signer, story)) == 1, "and the next good one counts"


def test_what_is_not_signed_as_what_it_is_is_refused(
    tmp_path: Path, dispatcher_signer: FileSigner, stranger_signer: FileSigner
) -> None:
    async def story(one: Listening) -> None:
        one.hear(prices(), stranger_signer)
        one.hear(demand(), stranger_signer)
        one.hear(demand(), payload_type=operator_messages.PRICES_TYPE)
        one.hear(prices(), payload_type=operator_messages.DEMAND_TYPE)
        one.hear(prices(), payload_type=messages.GRANT_TYPE)
        one.desk.receive(TOPIC, msgspec.json.encode(prices()))
        one.hear(msgspec.structs.replace(demand(), stop_for_s=86_401))
        one.hear(msgspec.structs.replace(demand(), stop_for_s=-1))
        assert sum(one.desk.refused.values()) == 8

    assert heard(tmp_path, dispatcher_signer, story) == []


def test_no_slots_take_the_curve_back() -> None:
    assert messages.decode(messages.encode(prices(slots=())), operator_messages.PricesMessage).slots == ()


@pytest.mark.parametrize("count", [192, 200, operator_messages.MAX_PRICE_SLOTS])
def test_two_days_of_quarter_hours_fit_into_a_message(dispatcher_signer: FileSigner, count: int) -> None:
    curve = prices(slots=slots(*[-9_876_543] * count, length_ms=900_000), unit="u" * 64)
    body = dsse.sign(operator_messages.PRICES_TYPE, messages.encode(curve), dispatcher_signer)
    assert len(body) <= messages.MAX_MESSAGE_BYTES
    read = messages.decode(
        dsse.verify(body, operator_messages.PRICES_TYPE, _trusted(dispatcher_signer)), operator_messages.PricesMessage
    )
    assert read == curve


def _trusted(signer: FileSigner) -> dict[str, EllipticCurvePublicKey]:
    return {signer.keyid: signer.public_key()}


NUMBERS = st.one_of(
    st.integers(-1, 5),
    st.integers(NOW_MS - 2 * DAY_MS, NOW_MS + 10 * DAY_MS),
    st.integers(0, 10**15),
    st.just(NOW_MS),
)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(-(2**40), 2**40)), max_size=6), NUMBERS, NUMBERS)
def test_every_curve_that_is_taken_is_one(entries: list[tuple[int, int, int]], issued_ms: int, expires_ms: int) -> None:
    body = {"unit": UNIT, "issued_wall_ms": issued_ms, "expires_wall_ms": expires_ms, "slots": entries}
    try:
        curve = messages.decode(msgspec.json.encode(body), operator_messages.PricesMessage)
    except messages.MessageError:
        return
    assert curve.issued_wall_ms < curve.expires_wall_ms <= curve.issued_wall_ms + 8 * DAY_MS
    for slot in curve.slots:
        assert 0 < slot.end_wall_ms - slot.start_wall_ms <= DAY_MS
        assert abs(slot.price_micro_per_kwh) <= 10_000_000
        assert abs(slot.start_wall_ms - curve.issued_wall_ms) <= 9 * DAY_MS
    assert all(one.end_wall_ms <= two.start_wall_ms for one, two in itertools.pairwise(curve.slots))


@given(st.lists(st.integers(0, 400), max_size=12), st.lists(st.integers(-5, 5), max_size=13))
def test_every_curve_of_ordered_slots_is_taken(gaps_min: list[int], numbers: list[int]) -> None:
    at_ms, made = NOW_MS, []
    for gap_min, price in zip(gaps_min, numbers, strict=False):
        at_ms += gap_min * 60_000
        made.append(operator_messages.PricesSlot(at_ms, at_ms + 900_000, price))
        at_ms += 900_000
    curve = prices(slots=tuple(made))
    assert messages.decode(messages.encode(curve), operator_messages.PricesMessage) == curve


@given(st.binary(max_size=300))
def test_no_bytes_are_an_order(dispatcher_signer: FileSigner, body: bytes) -> None:
    one = Listening(Path("never-opened"), dispatcher_signer)
    one.desk.receive(TOPIC, body)
    for kind in (operator_messages.PRICES_TYPE, operator_messages.DEMAND_TYPE):
        one.desk.receive(TOPIC, dsse.sign(kind, body, dispatcher_signer))
    assert one.events == []
    assert sum(one.desk.refused.values()) == 3


def test_an_order_from_the_future_is_refused_and_locks_nothing_out(
    tmp_path: Path, dispatcher_signer: FileSigner
) -> None:
    """Taken while nobody knew the time, it gives way once somebody does."""
    far_ms = NOW_MS + 40 * 365 * DAY_MS

    async def while_nobody_knows(one: Listening) -> None:
        one.hear(prices(far_ms, slots=slots(1, start_ms=far_ms)))
        one.hear(demand(far_ms, 60))

    async def later(one: Listening) -> None:
        one.hear(prices(far_ms + 1, slots=slots(1, start_ms=far_ms)))
        one.hear(demand(far_ms + 1))
        assert one.desk.refused == {"config: replay": 2}
        one.hear(prices(NOW_MS))
        one.hear(demand(NOW_MS, 900))

    assert len(heard(tmp_path, dispatcher_signer, while_nobody_knows, trusted=False)) == 2
    *_, curve, stop = heard(tmp_path, dispatcher_signer, later)
    assert isinstance(curve, PricesSeen)
    assert curve.issued_wall_ms == NOW_MS
    assert isinstance(stop, DemandSeen)
    assert stop.stop_for_ms == 900_000


def test_a_curve_that_has_expired_gives_way_to_one_that_holds(tmp_path: Path, dispatcher_signer: FileSigner) -> None:
    async def story(one: Listening) -> None:
        one.hear(prices(NOW_MS + 1, expires_wall_ms=NOW_MS + 2 * HOUR_MS, slots=slots(1)))
        one.hear(prices(NOW_MS))
        assert one.desk.refused == {"config: replay": 1}
        one.clock.now_ms = 2 * HOUR_MS
        one.hear(prices(NOW_MS))

    first, second = heard(tmp_path, dispatcher_signer, story)
    assert isinstance(first, PricesSeen)
    assert isinstance(second, PricesSeen)
    assert (first.issued_wall_ms, second.issued_wall_ms) == (NOW_MS + 1, NOW_MS)
