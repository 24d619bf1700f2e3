"""What the shells tell of hand-ins: answers they only name, what the link did not take, a place that was renewed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from agent.core.effects import KeepGrant, OpenLease, SendHandIn
from agent.core.events import HandInNotSent, HandInStored
from agent.core.model import Grant, Spent
from agent.store import Store
from tests.bench import Bench, bench, result, served
from tests.test_handin import finished

URL = "https://fleet.example/uploads"


async def open_with(here: Bench, *sizes: int, **changes: object) -> Grant:
    """An open lease with slices whose answers are so long."""
    one = msgspec.structs.replace(here.job(), **changes)
    await here.do(OpenLease(grant=one))
    for index, size in enumerate(sizes):
        await here.store.call(Store.add_slice, one.key, finished(index, b"x" * size), Spent(1, 1))
    here.events.clear()
    return one


def test_a_stored_hand_in_says_which_answers_it_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = await open_with(here, 8_000, 8_000, 2, upload_url=URL, upload_token="t" * 16)
            await here.do(msgspec.structs.replace(result(one), uploaded=(0,)))
            stored = here.only(HandInStored)
            assert (stored.referenced, stored.missing) == ((0,), ())
            (row,) = await here.outbox()
            assert (row.referenced, row.missing) == ((0,), (0,)), "after a restart nobody knows what was brought"

    served(monkeypatch)
    asyncio.run(story())


def test_a_hand_in_that_the_link_does_not_take_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = await open_with(here, 2, 2, 2)
            await here.do(result(one))
            here.events.clear()
            here.desk.full = True
            await here.do(SendHandIn(key=one.key, credit=1, have=()))
            assert here.only(HandInNotSent).key == one.key
            here.desk.full = False
            here.events.clear()
            await here.do(SendHandIn(key=one.key, credit=1, have=()))
            assert len(here.desk.hand_ins) == 1
            assert not here.events

    served(monkeypatch)
    asyncio.run(story())


def test_a_renewed_grant_is_the_one_that_a_later_run_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = await open_with(here, upload_url=URL, upload_token="t" * 16)
            renewed = msgspec.structs.replace(one, upload_token="n" * 16)
            await here.do(KeepGrant(grant=renewed))
            (row,) = await here.store.call(Store.open_leases)
            assert row.grant == renewed

    served(monkeypatch)
    asyncio.run(story())
