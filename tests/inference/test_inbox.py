"""A flood of words: the loop turns to others in between, nothing grows, and nothing that is wrong with it gets away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import wire
from agent.inference import inbox as inbox_module
from agent.inference.inbox import MOST_MESSAGES, READ_BYTES, Inbox
from agent.inference.launcher import launch
from tests.conftest import FixedClock
from tests.inference.desk import PATIENCE_S, Desk
from tests.inference.test_launcher import impostor

BEAT = wire.encode(wire.Beat())


class Ear:
    """An inbox on a socket pair, and what came of it."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.took: list[wire.WorkerMessage] = []
        self.faults: list[str] = []
        self.heard = self.ends = self.sent_bytes = 0
        self.inbox = Inbox(ours, take=self.take, heard=self._heard, fault=self._fault, ended=self._ended)

    def take(self, message: wire.WorkerMessage) -> None:
        self.took.append(message)

    def flood(self, beats: int = 20_000) -> None:
        """Write so many more beats, or as much of them as the socket takes; the next go on where these ended."""
        with contextlib.suppress(BlockingIOError):
            self.sent_bytes += self.theirs.send((BEAT * beats)[self.sent_bytes % len(BEAT) :])

    async def finish(self) -> None:
        over = asyncio.Event()
        self.inbox.finish(over.set)
        await over.wait()
        self.theirs.close()

    def _heard(self) -> None:
        self.heard += 1

    def _fault(self, what: str) -> None:
        self.faults.append(what)
        self.inbox.shut()

    def _ended(self) -> None:
        self.ends += 1


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    while not true():  # noqa: ASYNC110 - it is the turns that matter
        await asyncio.sleep(0)


def listening(story: Callable[[Ear], Awaitable[None]]) -> None:
    async def main() -> None:
        ear = Ear()
        async with asyncio.timeout(PATIENCE_S):
            await story(ear)
            await ear.finish()

    asyncio.run(main())


def test_a_flood_leaves_the_loop_its_turns_and_nothing_is_lost() -> None:
    async def story(ear: Ear) -> None:
        most = 0
        for _ in range(200):
            ear.flood()
            before = len(ear.took)
            await asyncio.sleep(0)
            most = max(most, len(ear.took) - before)
            assert len(ear.inbox._decoder._buffer) <= 2 * READ_BYTES
        assert 0 < most <= MOST_MESSAGES
        await until(lambda: len(ear.took) == ear.sent_bytes // len(BEAT))
        assert ear.faults == []

    listening(story)


def test_what_rides_along_comes_in_its_order_behind_a_flood() -> None:
    async def story(ear: Ear) -> None:
        ear.flood(3 * MOST_MESSAGES)
        descriptor, built = os.memfd_create("plan"), wire.Built(plan_bytes=1, timing_bytes=0)
        socket.send_fds(ear.theirs, [wire.encode(built)], [descriptor])
        os.close(descriptor)
        await until(lambda: ear.took[-1:] == [built])
        assert len(ear.took) == 3 * MOST_MESSAGES + 1
        with pytest.raises(wire.WireError, match="sealed"):
            ear.inbox.take_memory(1)

    listening(story)


def test_the_end_comes_after_all_that_was_said() -> None:
    async def story(ear: Ear) -> None:
        ear.flood(5 * MOST_MESSAGES)
        ear.theirs.shutdown(socket.SHUT_WR)
        await until(lambda: ear.ends > 0)
        assert len(ear.took) == 5 * MOST_MESSAGES
        assert ear.ends == 1

    listening(story)


def test_last_words_are_heard_to_their_end_turn_by_turn_but_not_those_of_somebody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox_module, "LAST_BYTES", 10 * READ_BYTES)

    async def story(ear: Ear) -> None:
        over = asyncio.Event()
        ear.flood(100)
        ear.inbox.finish(over.set)
        while not over.is_set():  # a child that it left goes on writing
            ear.flood()
            before = len(ear.took)
            await asyncio.sleep(0)
            assert len(ear.took) - before <= MOST_MESSAGES
        assert len(ear.took) * len(BEAT) <= 11 * READ_BYTES
        ear.theirs.close()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await story(Ear())

    asyncio.run(main())


def test_after_it_is_shut_nothing_counts_though_it_waits_already() -> None:
    async def story(ear: Ear) -> None:
        ear.flood(3 * MOST_MESSAGES)
        await until(lambda: bool(ear.took))
        ear.inbox.shut()
        count = len(ear.took)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(ear.took) == count

    listening(story)


def test_half_a_message_is_a_sign_of_life() -> None:
    async def story(ear: Ear) -> None:
        ear.theirs.send(BEAT[:5])
        await until(lambda: ear.heard > 0)
        assert ear.took == []

    listening(story)


def test_a_message_that_cannot_be_handled_ends_the_worker_and_never_reaches_the_loops_handler(tmp_path: Path) -> None:
    async def watch() -> None:
        unhandled: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        desk = Desk()

        def on_message(_message: wire.WorkerMessage) -> None:
            raise OverflowError("no such number")

        launch(FixedClock(), on_message, desk._ended, python=impostor(tmp_path, "hello(); time.sleep(60)"))
        expected, detail = await desk.end()
        assert not expected
        assert "what it said could not be handled: OverflowError('no such number')" in detail
        assert "SIGKILL" in detail
        assert unhandled == []

    asyncio.run(watch())
