"""What is counted, logged and learnt is what was committed, once; and complaints do not fill a disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from agent.core.model import Verdict
from hil.dispatcher.complaints import LINES, REMEMBERED, Complaints
from hil.dispatcher.database import ConflictError
from tests.hil.honest_car import Car, Desk


def conflict_at_commit(desk: Desk, times: int) -> Callable[[str], None]:
    """The database's `_end`, with another replica that is first so many times."""
    end, left = desk.book.database._end, [times]

    def broken(word: str) -> None:
        if word == "COMMIT" and left[0]:
            left[0] -= 1
            raise ConflictError("another replica was first")
        end(word)

    return broken


def test_what_is_done_again_counts_once(desk: Desk, car: Car, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.add_job()
    result = car.result(car.must_request())
    desk.service.counts.clear()
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(desk.book.database, "_end", conflict_at_commit(desk, 2))
        assert car.hand_in(result).verdict is Verdict.SETTLED
    assert desk.service.counts == {"result": 1, "settled": 1, "conflicts": 2}
    assert [line["event"] for line in logs if line["event"] == "settled"] == ["settled"]
    measured = [one.items for samples in desk.book._rates._measured.values() for one in samples]
    assert measured == [10]


def test_what_was_undone_is_not_called_upon(desk: Desk) -> None:
    called: list[str] = []
    database = desk.book.database
    with pytest.raises(ZeroDivisionError), database.transaction():  # noqa: PT012 - one transaction, of two steps
        database.on_commit(lambda: called.append("undone"))
        raise ZeroDivisionError
    with database.transaction():
        with database.transaction():
            database.on_commit(lambda: called.append("done"))
        assert called == [], "one inside another is part of it"
    assert called == ["done"]
    database.on_commit(lambda: called.append("now"))
    assert called == ["done", "now"]


def test_complaints_are_a_few_lines_a_unit_and_minute(desk: Desk, car: Car, other: Car) -> None:
    now_s = [0.0]
    desk.service._complaints = Complaints(lambda: now_s[0])
    with capture_logs() as logs:
        for number in range(2_000):
            car.say("status", b'{"state":"up","boot":"a","conn":%d.5,"version":"x","v":%d}' % (number, number + 2))
            desk.tell(f"dw/v1/u/00/stranger-{number}/status", b"")
        other.say("status", b"rubbish")
        now_s[0] += 61
        car.say("status", b"rubbish")
    lines = [(line["who"], line.get("untold", 0)) for line in logs if line["event"] == "message_refused"]
    assert sorted(lines) == [
        *[("car-1", 0)] * LINES,
        ("car-1", 2_000 - LINES),
        ("car-2", 0),
        *[("strangers", 0)] * LINES,
    ]
    assert desk.service.counts["refused"] == 4_002, "all of them are counted"


def test_complaints_are_remembered_within_bounds() -> None:
    complaints = Complaints(lambda: 0.0)
    with capture_logs() as logs:
        for number in range(2 * REMEMBERED):
            complaints.tell(f"unit-{number}", "a\nb\x1b[2J" + "c" * 1_000)
    assert len(complaints._told) == REMEMBERED
    assert all(line["reason"].isprintable() and len(line["reason"]) <= 300 for line in logs)
