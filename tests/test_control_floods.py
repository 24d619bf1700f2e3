"""The control socket against slow, greedy and wild clients, of real other users where that counts.

What is held: nobody takes all places; slow readers and writers, floods of connections and of questions, and hung disks
cost the guest, and neither the daemon's loop nor the next guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import READ_FROM_DISK, ControlRequest
from agent.control_server import ControlServer
from agent.errors import DrivewayError
from agent.peers import Bounds, Guests, Pace, Rank
from tests.guests import ask_as, asks, echo, needs_root, open_folder, serving, talk, told, until

STRANGER, OTHER, OWNER_GID, READERS_GID = 54_321, 54_322, 54_400, 54_401


# --- how many, how much ----------


@needs_root
def test_one_user_cannot_take_another_users_place() -> None:
    async def story() -> None:
        with open_folder() as folder:
            async with serving(folder, guests=6, guests_of_one=2, places_kept=2) as server:
                (folder / "control.sock").chmod(0o666)
                greedy = asyncio.create_task(ask_as(STRANGER, server._path, *asks("why"), connections=5))
                (said,) = await greedy
                assert said["code"] == "busy", "its fifth connection was turned away"
                assert "54321 has 2 connections already" in said["error"]
                (fine,) = await ask_as(OTHER, server._path, *asks("why"))
                assert fine["ok"]
                assert (await talk(server._path, b'{"verb":"why"}'))[0]["ok"]

    told(story)


def test_places_are_kept_for_root_and_the_daemons_own_user() -> None:
    guests = Guests(Bounds(guests=4, guests_of_one=3, places_kept=2))
    assert [guests.admit(1, Rank.READER) == "" for _ in range(3)] == [True, True, False]
    assert guests.admit(2, Rank.OWNER) == "the daemon has as many clients as it takes"
    assert [guests.admit(0, Rank.ROOT) == "" for _ in range(3)] == [True, True, False]
    guests.go(1)
    assert guests.count == 3
    assert guests.admit(2, Rank.OWNER) != "", "three of four are taken, and two of them are kept"
    guests.go(0)
    assert guests.admit(2, Rank.OWNER) != ""
    guests.go(0)
    assert guests.admit(2, Rank.OWNER) == ""
    assert guests.refused == 5


def test_a_place_is_free_again_when_its_guest_has_left(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, guests=1, places_kept=0) as server:
            for _ in range(20):
                assert (await talk(server._path, b'{"verb":"why"}'))[0]["ok"]
                await until(lambda: server.guests.count == 0)

    told(story)


@given(st.lists(st.floats(0, 5), max_size=60))
@settings(derandomize=True, deadline=None)
def test_a_pace_gives_its_burst_and_then_its_rate(steps: list[float]) -> None:
    pace, now_s, starts = Pace(per_s=2, burst=3), 10.0, []
    for later_s in steps:
        now_s += later_s
        now_s += pace.take(now_s)
        starts.append(now_s)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            assert last - first + 1 <= 3 + 2 * (starts[last] - starts[first]) + 1e-6


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    pace = Pace(per_s=1, burst=2)
    assert [pace.take(now_s) for now_s in (10, 5, 5, 10)] == [0, 0, 1, 2]


def test_users_who_left_are_forgotten() -> None:
    guests = Guests(Bounds())
    for uid in range(1_000, 1_400):
        assert guests.admit(uid, Rank.READER) == ""
        guests.wait_s(uid, Rank.READER, now_s=uid * 10.0)
        guests.go(uid)
    assert len(guests._paces) <= 2


@needs_root
def test_a_flood_of_questions_waits_for_its_turn_and_only_its_user_does() -> None:
    async def story() -> None:
        asked = 0

        async def count(request: ControlRequest) -> object:
            nonlocal asked
            asked += 1
            return None

        with open_folder() as folder:
            async with serving(folder, count, questions_per_s=1e-6, questions_burst=3) as server:
                (folder / "control.sock").chmod(0o666)
                flood = asyncio.create_task(ask_as(STRANGER, server._path, *asks(*["why"] * 50)))
                await until(lambda: asked == 3)
                assert (await ask_as(OTHER, server._path, *asks("why")))[0]["ok"]
                assert (await talk(server._path, *[b'{"verb":"why"}'] * 20))[19]["ok"], "root does not wait"
                assert asked == 24, "the flood was not answered meanwhile"
                flood.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await flood

    told(story)


def test_questions_in_one_breath_let_the_loop_go_round_between_them(tmp_path: Path) -> None:
    async def story() -> None:
        rounds: list[int] = []
        turn = 0

        async def answer(_request: ControlRequest) -> object:
            rounds.append(turn)
            return None

        async def loop_goes_round() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async with serving(tmp_path, answer) as server:
            ticking = asyncio.create_task(loop_goes_round())
            reader, writer = await asyncio.open_unix_connection(str(server._path))
            writer.write(b'{"verb":"why"}\n' * 200)
            for _ in range(200):
                assert json.loads(await reader.readline())["ok"]
            writer.close()
            ticking.cancel()
        assert len(set(rounds)) == 200, "the loop went round before each"

    told(story)


def test_a_reader_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    async def story() -> None:
        async def much(_request: ControlRequest) -> object:
            return "x" * 4_000_000

        async with serving(tmp_path, much, reading_s=0.05) as server:
            with socket.socket(socket.AF_UNIX) as slow:
                slow.connect(str(server._path))
                slow.sendall(b'{"verb":"why"}\n')
                await until(lambda: server.guests.count == 1)
                await until(lambda: server.guests.count == 0)
                assert not server._clients

    told(story)


@pytest.mark.parametrize("said", [b"", b'{"verb":'])
def test_who_says_nothing_whole_is_dropped(tmp_path: Path, said: bytes) -> None:
    async def story() -> None:
        async with serving(tmp_path, question_s=0.05) as server:
            reader, writer = await asyncio.open_unix_connection(str(server._path))
            writer.write(said)
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
            await until(lambda: server.guests.count == 0)

    told(story)


def test_one_byte_at_a_time_does_not_stretch_the_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, question_s=0.3) as server:
            reader, writer = await asyncio.open_unix_connection(str(server._path))
            began_s = time.monotonic()
            with contextlib.suppress(OSError):
                while not reader.at_eof() and reader.exception() is None:
                    writer.write(b" ")
                    await asyncio.sleep(0.02)
                    assert time.monotonic() - began_s < 30, "it would go on for ever"
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    told(story)


def test_a_disk_that_hangs_keeps_neither_a_place_nor_the_other_questions(tmp_path: Path) -> None:
    async def story() -> None:
        async def hangs(request: ControlRequest) -> object:
            if request.verb in READ_FROM_DISK:
                await asyncio.Event().wait()
            return request.verb

        async with serving(tmp_path, hangs, reading_at_once=2, answer_s=0.2) as server:
            stuck = [asyncio.create_task(talk(server._path, b'{"verb":"status"}')) for _ in range(5)]
            await asyncio.sleep(0)
            assert (await talk(server._path, b'{"verb":"why"}'))[0]["data"] == "why"
            for (said,) in await asyncio.gather(*stuck):
                assert (said["code"], said["hint"]) == ("late", "its disk may hang: ask `driveway why`")

    told(story)


def test_only_so_many_answers_are_read_from_the_disk_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        now = most = 0

        async def reads(_request: ControlRequest) -> object:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return None

        async with serving(tmp_path, reads, reading_at_once=3) as server:
            await asyncio.gather(*(talk(server._path, b'{"verb":"leases"}') for _ in range(12)))
        assert most == 3

    told(story)


def test_a_flood_of_connections_is_let_in_at_a_pace(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path, connects_per_s=1e-6, connects_burst=4) as server:
            flood = [socket.socket(socket.AF_UNIX) for _ in range(12)]
            for one in flood:
                one.setblocking(False)
                one.connect(str(server._path))
            await until(lambda: server.guests.count == 5)  # its burst, and the one that waits has been let in
            for _ in range(50):
                await asyncio.sleep(0)
            assert server.guests.count == 5, "the rest waits in the kernel"
            for one in flood:
                one.close()

    told(story)


def test_a_daemon_whose_queue_is_full_is_alive(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(str(path))
            busy.listen(0)
            waiting.connect(str(path))
            with pytest.raises(DrivewayError, match="another daemon answers on"):
                await ControlServer(path, echo).start()
            assert path.exists()

    told(story)
