"""The control socket: one JSON object a line in, one a line out, over a Unix socket with the peer's credentials.

    -> {"verb": "leases", "limit": 20}
    <- {"ok": true, "data": [...]}      or      {"ok": false, "error": "...", "hint": "..."}

Everybody who may open the socket (its group) may read; what changes something, tells everything or computes
(`RESERVED`: the owner's word, a recording, a new key, a self-test) is for root and the daemon's own user.
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

from agent import sd
from agent.core.policy import MAX_CLASSES, Window, WorkloadClass
from agent.errors import DrivewayError
from agent.log import logger
from agent.tasks import finished
from agent.trust.records import MAX_TEXT
from agent.trust.succession import MAX_OVERLAP_S

MAX_LINE_BYTES = 4096
IDLE_TIMEOUT_S = 30.0
CLOSE_S = 1.0
PASSED_AS = "control"
"""FileDescriptorName= of a socket unit that listens in the daemon's place."""
OWNERS = {"pause", "resume", "finish", "consent_accept", "consent_withdraw", "owner_set", "owner_clear"}
RESERVED = OWNERS | {"record", "keys_rotate", "self_test"}
LONGEST_PAUSE_MS = 366 * 24 * 3_600_000
MAX_WINDOWS = 28
"""Four a day."""

Wish = Literal["schedule", "price_floor", "classes"]
WISHES: tuple[Wish, ...] = ("schedule", "price_floor", "classes")


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a pause lasts: a duration, or until a wall time (ms since 1970); neither: until `resume`."""

    for_ms: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_PAUSE_MS)] | None = None
    until_wall_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Wishes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The owner's standing wishes; None where the owner has none, and the configuration counts."""

    schedule: Annotated[tuple[Window, ...], msgspec.Meta(max_length=MAX_WINDOWS)] | None = None
    price_floor_micro_per_kwh: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] | None = None
    classes: Annotated[tuple[WorkloadClass, ...], msgspec.Meta(max_length=MAX_CLASSES)] | None = None

    def updated(self, other: Wishes) -> Wishes:
        """These, with what the others name in their place."""
        named = {name: getattr(other, name) for name in self.__struct_fields__ if getattr(other, name) is not None}
        return msgspec.structs.replace(self, **named)

    def without(self, names: tuple[Wish, ...]) -> Wishes:
        """These without those."""
        return Wishes(
            schedule=None if "schedule" in names else self.schedule,
            price_floor_micro_per_kwh=None if "price_floor" in names else self.price_floor_micro_per_kwh,
            classes=None if "classes" in names else self.classes,
        )


class ControlRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may ask; beside the verb counts only what belongs to it.

    `ledger_prove` is about the leaf at index `leaf`, or without one about the statement of lease `job`, `epoch`.
    `reason` and `overlap_s` are of `keys_rotate`.
    """

    verb: Literal[
        "status",
        "why",
        "signals",
        "leases",
        "earnings",
        "ledger",
        "ledger_prove",
        "pause",
        "resume",
        "finish",
        "owner",
        "owner_set",
        "owner_clear",
        "consent_accept",
        "consent_withdraw",
        "record",
        "packages",
        "keys",
        "keys_rotate",
        "self_test",
    ]
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    pause: Pause = Pause()
    wishes: Wishes = Wishes()
    clear: tuple[Wish, ...] = ()
    version: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    leaf: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    job: Annotated[str, msgspec.Meta(max_length=64)] = ""
    epoch: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    reason: Annotated[str, msgspec.Meta(max_length=MAX_TEXT)] = ""
    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_S)] = 0


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
        self._is_passed = False
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Listen; a socket left behind by a dead daemon is replaced. Raises DrivewayError when one is alive.

        Where a socket unit has passed one named `control`, that is served instead, and stays when the daemon ends.
        """
        passed = sd.listen_fds(os.environ, os.getpid())
        given = next((descriptor for descriptor, name in passed.items() if name == PASSED_AS), None)
        if given is not None:
            self._is_passed = True
            listening = socket.socket(fileno=given)
            listening.set_inheritable(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_LINE_BYTES)
            return
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
        """Stop listening, remove the socket, and hang up on who is still there."""
        if self._server is not None:
            self._server.close()
            if not self._is_passed:
                self._path.unlink(missing_ok=True)
        for writer in self._clients.values():
            writer.close()
        await finished(tuple(self._clients), CLOSE_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        task.add_done_callback(self._clients.pop)
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
        if request.verb in RESERVED and not _may_change(writer):
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
