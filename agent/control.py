"""The control socket: one JSON object a line in, one a line out, over a Unix socket with the peer's credentials.

    -> {"verb": "leases", "limit": 20}
    <- {"ok": true, "data": [...]}      or      {"ok": false, "error": "...", "hint": "..."}

Everybody who may open the socket (its group) may read; `pause` and `resume` are for root and the daemon's own user.
Each client has a small line limit and a time limit, so a slow or hostile one costs a task and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from agent.errors import DrivewayError
from agent.log import logger

MAX_LINE_BYTES = 4096
IDLE_TIMEOUT_S = 30.0
CHANGES = {"pause", "resume"}


class ControlRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may ask."""

    verb: Literal["status", "why", "signals", "leases", "earnings", "ledger", "pause", "resume"]
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20


class ControlAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it is told."""

    ok: bool
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    hint: str = ""


Answer = Callable[[ControlRequest], Awaitable[object]]


class ControlServer:
    """Serves one Unix socket; `answer` turns a request into a value that msgspec can encode."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path, self._answer = path, answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket left behind by a dead daemon is replaced. Raises DrivewayError when one is alive."""
        if await asyncio.to_thread(_is_served, self._path):
            raise DrivewayError(
                f"another daemon answers on {self._path}", hint="stop it, or use another control_socket"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MAX_LINE_BYTES)
        except OSError as error:
            raise DrivewayError(f"cannot listen on {self._path}: {error.strerror or error}") from error
        self._path.chmod(0o660)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await asyncio.wait_for(reader.readline(), IDLE_TIMEOUT_S):
                writer.write(msgspec.json.encode(await self._one(line, writer)) + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_TIMEOUT_S)
        except (TimeoutError, ValueError, OSError):
            pass  # too slow, too long a line, or gone: the client's trouble
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(self, line: bytes, writer: asyncio.StreamWriter) -> ControlAnswer:
        try:
            request = msgspec.json.decode(line, type=ControlRequest)
        except msgspec.DecodeError as error:
            return ControlAnswer(ok=False, error=f"not a request: {error}")
        if request.verb in CHANGES and not _may_change(writer):
            return ControlAnswer(
                ok=False, error=f"{request.verb} is for root and the daemon's own user", hint="use sudo"
            )
        try:
            data = await self._answer(request)
        except DrivewayError as error:
            return ControlAnswer(ok=False, error=error.what, hint=error.hint)
        except Exception as error:  # noqa: BLE001 - one bad answer must not end the daemon
            logger().error("control_failed", verb=request.verb, error=repr(error))
            return ControlAnswer(ok=False, error=f"the daemon failed to answer: {error!r}")
        return ControlAnswer(ok=True, data=msgspec.Raw(msgspec.json.encode(data)))


def _may_change(writer: asyncio.StreamWriter) -> bool:
    sock: socket.socket = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid in {0, os.getuid()}


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
