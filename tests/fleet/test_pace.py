"""The cell's pace: signed, newest only, over restarts; a stop stands before any broker is reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agent.core.events import EventType, LinkChanged, PaceSeen
from agent.core.model import Pace, PaceState
from agent.fleet import operator_messages
from agent.fleet.orders import Orders
from agent.store import Store
from agent.trust import dsse
from agent.trust.keys import FileSigner
from tests.fleet.test_orders import DAY_MS, NOW_MS, Listening, heard, nothing

TOPIC = "dw/v1/b/00/pace"
STOP, OPEN, CLOSED = PaceState.STOP, PaceState.OPEN, PaceState.CLOSED


def pace(issued_ms: int = NOW_MS, state: str = STOP, **changes: object) -> operator_messages.PaceMessage:
    message = operator_messages.PaceMessage(cell="00", issued_wall_ms=issued_ms, state=OPEN, spread_s=900)
    return msgspec.structs.replace(message, state=state, **changes)


@pytest.fixture
def played(tmp_path: Path, dispatcher_signer: FileSigner) -> Callable[..., list[EventType]]:
    """One run of the agent over the same disk."""

    def play(story: Callable[[Listening], Awaitable[None]] = nothing, **run: object) -> list[EventType]:
        return heard(tmp_path, dispatcher_signer, story, **run)

    return play


@pytest.fixture
def tell(dispatcher_signer: FileSigner) -> Callable[..., None]:
    def told(one: Listening, message: operator_messages.PaceMessage, topic: str = TOPIC) -> None:
        one.desk.receive(topic, dsse.sign(operator_messages.PACE_TYPE, msgspec.json.encode(message), dispatcher_signer))

    return told


Tell = Callable[..., None]
Played = Callable[..., list[EventType]]


def paces(events: list[EventType]) -> list[Pace]:
    return [event.pace for event in events if isinstance(event, PaceSeen)]


def test_a_stop_stands_after_a_restart_before_anything_is_heard(played: Played, tell: Tell) -> None:
    async def story(one: Listening) -> None:
        tell(one, pace(detail="recall"))

    stop = Pace(STOP, 900_000, 1000)
    assert paces(played(story)) == [stop]
    (event,) = played(boot="boot-2", now_ms=5)
    assert isinstance(event, PaceSeen)
    assert (event.pace, event.detail) == (stop, "recall")


def test_a_retained_copy_is_no_news_and_an_older_one_a_replay_over_restarts_too(played: Played, tell: Tell) -> None:
    async def first(one: Listening) -> None:
        tell(one, pace(NOW_MS, OPEN))
        tell(one, pace(NOW_MS + 1, CLOSED))
        tell(one, pace(NOW_MS + 1, CLOSED))
        assert not one.desk.refused
        tell(one, pace(NOW_MS, OPEN))
        assert one.desk.refused == {"pace: replay": 1}

    async def second(one: Listening) -> None:
        tell(one, pace(NOW_MS + 1, CLOSED))
        tell(one, pace(NOW_MS, OPEN))
        assert one.desk.refused == {"pace: replay": 1}
        tell(one, pace(NOW_MS + 2, OPEN, spread_s=0, interval_permille=2000))

    assert [one.state for one in paces(played(first))] == [OPEN, CLOSED]
    assert paces(played(second)) == [Pace(CLOSED, 900_000, 1000), Pace(OPEN, 0, 2000)]


@pytest.mark.parametrize(
    ("message", "topic", "refusal"),
    [
        (pace(cell="01"), TOPIC, "pace: foreign"),
        (pace(), "dw/v1/b/01/pace", "other: unexpected"),
        (pace(), "dw/v1/d/car-0001/pace", "other: unexpected"),
        (pace(), "dw/v1/d/car-0001/config", "config: forged"),
        (pace(), "dw/v1/d/car-0001/grant", "grant: forged"),
        (pace(NOW_MS + 40 * 365 * DAY_MS), TOPIC, "pace: replay"),
        (pace(-1), TOPIC, "pace: malformed"),
        (pace(spread_s=3601), TOPIC, "pace: malformed"),
        (pace(spread_s=-1), TOPIC, "pace: malformed"),
        (pace(interval_permille=99), TOPIC, "pace: malformed"),
        (pace(state="sprint"), TOPIC, "pace: malformed"),
        (pace(v=2), TOPIC, "pace: malformed"),
    ],
)
def test_a_pace_that_is_none_of_this_cell_and_time_is_refused(
    played: Played, tell: Tell, message: operator_messages.PaceMessage, topic: str, refusal: str
) -> None:
    async def story(one: Listening) -> None:
        tell(one, message, topic)
        assert one.desk.refused == {refusal: 1}
        tell(one, pace())

    assert len(played(story)) == 1, "and the next good one counts"


def test_the_pace_of_a_cell_that_this_car_has_left_is_not_obeyed(played: Played, tell: Tell) -> None:
    async def story(one: Listening) -> None:
        tell(one, pace())

    async def elsewhere(one: Listening) -> None:
        moved = Orders(one.store, one.clock, "boot-1", lambda: True, cell="01")
        assert await moved.restore() == []
        assert moved.pace == Pace()

    assert len(paces(played(story))) == 1
    played(elsewhere)


def test_a_pace_in_the_store_that_is_not_understood_is_forgotten(
    played: Played, tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    async def write(one: Listening) -> None:
        row = ("pace", '{"v":2,"state":"crawl"}')
        await one.store.call(lambda store: store._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row))

    async def newer(one: Listening) -> None:
        assert await one.store.call(Store.recall, "pace", operator_messages.PaceMessage) is None
        tell(one, pace())

    played(write)
    assert played() == []
    assert capsys.readouterr().out.count("order_not_understood") == 1
    assert len(paces(played(newer))) == 1


class Carrier:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.spreads_ms: list[int] = []

    def publish(self, *_: object, **__: object) -> bool:
        return False

    def spread(self, spread_ms: int) -> None:
        self.spreads_ms.append(spread_ms)


def test_the_link_learns_the_spread_when_it_goes_down(played: Played, tell: Tell) -> None:
    carriers: list[Carrier] = []

    async def story(one: Listening) -> None:
        carriers.append(Carrier())
        one.desk.attach(carriers[-1])
        one.desk.link_changed(False, "b:1", "gone")
        tell(one, pace(NOW_MS + len(carriers), OPEN, spread_s=300))
        one.desk.link_changed(True, "b:1", "")
        one.desk.link_changed(False, "b:1", "gone")

    events = played(story)
    assert sum(isinstance(event, LinkChanged) for event in events) == 3
    played(story, boot="boot-2")
    assert [one.spreads_ms for one in carriers] == [[0, 300_000], [300_000, 300_000]], "also over a restart"
