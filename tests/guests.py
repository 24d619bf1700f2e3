"""A control socket with guests that really are other users: processes of their own, with user, group and more groups.

Changing to another user needs root; where a test has not got it, it is skipped and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.control import Answer, ControlRequest
from agent.control_server import ControlServer
from agent.peers import Bounds

SCRIPT = """
import json, os, socket, sys
path, connections, lines, (uid, gid, groups) = sys.argv[1], *map(json.loads, sys.argv[2:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
told = []
try:
    held = []
    for _ in range(connections):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(20)
        one.connect(path)
        held.append(one)
    if not lines:
        told = [json.loads(one.makefile('rb').readline() or b'null') for one in held]
    for line in lines:
        try:
            held[-1].sendall(line.encode() + b'\\n')
        except BrokenPipeError:
            pass  # turned away with a word, which is still there to be read
        told.append(json.loads(held[-1].makefile('rb').readline() or b'null'))
except OSError as error:
    told.append({'os': type(error).__name__})
print(json.dumps(told))
"""
"""Becomes another user, opens so many connections, asks on the last, and prints the answers.

Without a question: what each connection is told.
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="driveway-guests-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def ask_as(
    uid: int, path: Path, *lines: str, gid: int | None = None, groups: tuple[int, ...] = (), connections: int = 1
) -> list[Any]:
    """What user `uid` is told on a socket, an answer a line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", SCRIPT, str(path), str(connections), json.dumps(lines)),
        json.dumps((uid, uid if gid is None else gid, groups)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    answers: list[Any] = json.loads(said)
    return answers


async def echo(request: ControlRequest) -> object:
    return {"verb": request.verb}


@asynccontextmanager
async def serving(
    folder: Path, answer: Answer = echo, *, owner_gid: int | None = None, **bounds: Any
) -> AsyncIterator[ControlServer]:
    server = ControlServer(folder / "control.sock", answer, bounds=Bounds(**bounds))
    await server.start()
    server._owner_gid = owner_gid
    server._owner_group = "" if owner_gid is None else "owners"
    try:
        yield server
    finally:
        await server.close()


def told(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))


async def talk(path: Path, *lines: bytes) -> list[Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**20)
    answers = []
    for line in lines:
        writer.write(line + b"\n")
        answers.append(json.loads(await asyncio.wait_for(reader.readline(), 20)))
    writer.close()
    await writer.wait_closed()
    return answers


def asks(*verbs: str) -> list[str]:
    return [json.dumps({"verb": verb}) for verb in verbs]


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")
