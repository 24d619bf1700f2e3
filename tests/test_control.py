"""The control socket: one line in, one line out, and nothing a client does hurts the daemon or another client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent import sd
from agent.control import MAX_LINE_BYTES, ControlRequest
from agent.control_server import PASSED_AS, ControlServer
from agent.errors import DrivewayError


async def answer(request: ControlRequest) -> object:
    if request.verb == "ledger":
        raise DrivewayError("the ledger is shut", hint="open it")
    if request.verb == "leases":
        raise RuntimeError("a bug")
    return {"verb": request.verb, "limit": request.limit}


def served(tmp_path: Path, story: Callable[[Path], Awaitable[None]]) -> None:
    async def run() -> None:
        path = tmp_path / "control.sock"
        server = ControlServer(path, answer)
        await server.start()
        try:
            await story(path)
        finally:
            await server.close()
        assert not path.exists()

    asyncio.run(run())


async def talk(path: Path, *lines: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    answers = []
    for line in lines:
        writer.write(line + b"\n")
        answers.append(await asyncio.wait_for(reader.readline(), 10))
    writer.close()
    await writer.wait_closed()
    return answers


def test_one_line_in_one_line_out(tmp_path: Path) -> None:
    async def story(path: Path) -> None:
        first, second = await talk(path, b'{"verb":"status"}', b'{"verb":"signals","limit":3}')
        assert json.loads(first) == {"ok": True, "data": {"verb": "status", "limit": 20}}
        assert json.loads(second)["data"]["limit"] == 3
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660  # noqa: PTH116 - a test may wait

    served(tmp_path, story)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"nonsense", "not a request"),
        (b'{"verb":"explode"}', "not a request"),
        (b'{"verb":"status","colour":1}', "colour"),
        (b'{"verb":"leases","limit":0}', "limit"),
        (b'{"verb":"ledger"}', "the ledger is shut"),
        (b'{"verb":"leases"}', "the daemon failed to answer"),
        (b"[" * 3000, "not a request"),
    ],
)
def test_a_bad_request_is_answered_and_the_next_one_works(tmp_path: Path, line: bytes, said: str) -> None:
    async def story(path: Path) -> None:
        bad, good = await talk(path, line, b'{"verb":"why"}')
        told = json.loads(bad)
        assert not told["ok"]
        assert said in told["error"]
        assert json.loads(good)["ok"]

    served(tmp_path, story)


def test_an_endless_line_ends_that_client_and_no_other(tmp_path: Path) -> None:
    async def story(path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"x" * (3 * MAX_LINE_BYTES))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        (good,) = await talk(path, b'{"verb":"why"}')
        assert json.loads(good)["ok"]

    served(tmp_path, story)


def test_a_second_daemon_does_not_take_the_socket_and_a_dead_ones_is_replaced(tmp_path: Path) -> None:
    async def story(path: Path) -> None:
        with pytest.raises(DrivewayError, match="another daemon answers on"):
            await ControlServer(path, answer).start()
        (good,) = await talk(path, b'{"verb":"why"}')
        assert json.loads(good)["ok"]

    served(tmp_path, story)
    (tmp_path / "control.sock").touch()
    served(tmp_path, _one_question)


async def _one_question(path: Path) -> None:
    assert json.loads((await talk(path, b'{"verb":"why"}'))[0])["ok"]


def test_closing_hangs_up_on_a_client_that_stays(tmp_path: Path) -> None:
    async def run() -> None:
        server = ControlServer(tmp_path / "control.sock", answer)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(b'{"verb":"status"}\n')
        await asyncio.wait_for(reader.readline(), 10)
        await server.close()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    asyncio.run(run())


def test_a_socket_that_a_unit_listens_on_is_served_and_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unit.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        passed = os.dup(listening.fileno())
        monkeypatch.setattr(sd, "FIRST_DESCRIPTOR", passed)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", PASSED_AS)

        async def run() -> None:
            server = ControlServer(tmp_path / "control.sock", answer)
            await server.start()
            (said,) = await talk(path, b'{"verb":"status"}')
            assert json.loads(said)["ok"]
            await server.close()

        asyncio.run(run())
        assert path.exists(), "the unit still listens on it"
        assert not (tmp_path / "control.sock").exists()
