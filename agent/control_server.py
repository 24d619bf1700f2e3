"""Serves the control socket (`agent.control`), safe against slow and hostile clients.

A guest costs a task and nothing else: lines are short, each has its time, there are so many guests and questions and no
more (`agent.peers.Bounds`), who does not read the answer is dropped, and every question lets the event loop go round
before the next. Answers that only read are given up in the end, so a disk that hangs keeps no place taken.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import msgspec

from agent import __version__, sd
from agent.control import (
    HELLO,
    MAX_LINE_BYTES,
    PROTOCOL,
    READ_FROM_DISK,
    RESERVED,
    VERBS,
    Answer,
    Code,
    ControlAnswer,
    ControlRequest,
    Hello,
    Named,
    needs,
)
from agent.errors import DrivewayError
from agent.log import logger
from agent.peers import Bounds, Guests, Pace, Peer, Rank, group_named, is_seen, peer_of, rank_of
from agent.tasks import finished

CLOSE_S = 1.0
RETRY_S = 0.1
"""Between two tries to accept where the system has no descriptor left."""
BACKLOG = 32
PASSED_AS = "control"
"""FileDescriptorName= of a socket unit that listens in the daemon's place."""


class ControlServer:
    """Serves one Unix socket; `answer` turns a request into a value that msgspec can encode."""

    def __init__(self, path: Path, answer: Answer, *, owner_group: str = "", bounds: Bounds | None = None) -> None:
        self._path, self._answer = path, answer
        self._owner_group = owner_group
        self._owner_gid: int | None = None
        self._bounds = Bounds() if bounds is None else bounds
        self.guests = Guests(self._bounds)
        self._reading = asyncio.Semaphore(self._bounds.reading_at_once)
        self._accepting: asyncio.Task[None] | None = None
        self._listening: socket.socket | None = None
        self._is_passed = False
        self._clients: dict[asyncio.Task[None], asyncio.Transport | None] = {}

    async def start(self) -> None:
        """Listen; a socket left behind by a dead daemon is replaced. Raises DrivewayError when one is alive.

        Where a socket unit has passed one named `control`, that is served instead, and stays when the daemon ends.
        """
        if self._owner_group:
            self._owner_gid = await asyncio.to_thread(_owners, self._owner_group)
        passed = sd.listen_fds(os.environ, os.getpid())
        given = next((descriptor for descriptor, name in passed.items() if name == PASSED_AS), None)
        if given is not None:
            self._is_passed = True
            self._listening = socket.socket(fileno=given)
            self._listening.set_inheritable(False)
        elif await asyncio.to_thread(_is_served, self._path):
            raise DrivewayError(
                f"another daemon answers on {self._path}", hint="stop it, or use another control_socket"
            )
        else:
            self._listening = _listening(self._path)
        self._listening.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listening))

    async def close(self) -> None:
        """Stop listening, remove the socket, and hang up on who is still there."""
        if self._accepting is not None and self._listening is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
            self._listening.close()
            if not self._is_passed:
                self._path.unlink(missing_ok=True)
        for transport in self._clients.values():
            if transport is not None:
                transport.close()
        await finished(tuple(self._clients), CLOSE_S)

    async def _accept(self, listening: socket.socket) -> None:
        """Let guests in, at a pace: who connects without end waits in the kernel's queue, not in the event loop."""
        loop, pace = asyncio.get_running_loop(), Pace(self._bounds.connects_per_s, self._bounds.connects_burst)
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:  # no descriptor left, or gone again
                await asyncio.sleep(RETRY_S)
                continue
            self._welcome(connection)
            await asyncio.sleep(pace.take(loop.time()))

    def _welcome(self, connection: socket.socket) -> None:
        """Begin to serve one, or turn it away with a word."""
        try:
            peer = peer_of(connection)
        except OSError:
            connection.close()
            return
        rank = rank_of(peer, self._owner_gid)
        why = self.guests.admit(peer.uid, rank)
        if why:
            _turn_away(connection, why)
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, peer, rank))
        self._clients[task] = None
        task.add_done_callback(lambda done: self._left(done, peer.uid))

    def _left(self, task: asyncio.Task[None], uid: int) -> None:
        self._clients.pop(task)
        self.guests.go(uid)

    async def _serve(self, connection: socket.socket, peer: Peer, rank: Rank) -> None:
        loop, task, bounds = asyncio.get_running_loop(), asyncio.current_task(), self._bounds
        assert task is not None
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        transport.set_write_buffer_limits(high=0)  # so that an answer has left when `drain` returns
        self._clients[task] = transport
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            while True:
                async with asyncio.timeout(bounds.question_s):
                    line = await reader.readline()
                if not line:
                    break
                await asyncio.sleep(self.guests.wait_s(peer.uid, rank, loop.time()))
                writer.write(msgspec.json.encode(await self._one(line, rank)) + b"\n")
                async with asyncio.timeout(bounds.reading_s):
                    await writer.drain()
        except (TimeoutError, ValueError, OSError):
            pass  # too slow, too long a line, or gone: the client's trouble
        finally:
            transport.abort()

    async def _one(self, line: bytes, rank: Rank) -> ControlAnswer:
        """The answer to one line; whatever the line holds, there is one."""
        try:
            verb = msgspec.json.decode(line, type=Named).verb
            if verb in VERBS:
                request = msgspec.json.decode(line, type=ControlRequest)
                return await self._answered(request, rank)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _not(f"not a request: {error}", code="bad_request")
        if verb == HELLO:
            return _fine(Hello(__version__, PROTOCOL, rank.name.lower(), {one: rank >= needs(one) for one in VERBS}))
        hint = f"the daemon is version {__version__}, this question is of another"
        return _not(f"not a request: no verb {verb[:40]!r} is known", hint, "unknown_verb")

    async def _answered(self, request: ControlRequest, rank: Rank) -> ControlAnswer:
        """What the daemon's parts say, or why they do not."""
        verb = request.verb
        if rank < needs(verb):
            return _not(f"{verb} is for {self._who(needs(verb))}", "use sudo", "refused")
        try:
            return _fine(await self._told(request))
        except DrivewayError as error:
            return _not(error.what, error.hint)
        except TimeoutError:
            return _not("the daemon could not answer in time", "its disk may hang: ask `driveway why`", "late")
        except Exception as error:  # noqa: BLE001 - one bad answer must not end the daemon
            logger().error("control_failed", verb=verb, error=repr(error))
            return _not(f"the daemon failed to answer: {type(error).__name__}", "its log says more (control_failed)")

    async def _told(self, request: ControlRequest) -> object:
        """The data; raises what `answer` raises, and TimeoutError where it only reads and takes too long."""
        if request.verb in RESERVED:
            return await self._answer(request)
        async with asyncio.timeout(self._bounds.answer_s):
            if request.verb not in READ_FROM_DISK:
                return await self._answer(request)
            async with self._reading:
                return await self._answer(request)

    def _who(self, rank: Rank) -> str:
        if rank is Rank.ROOT:
            return "root"
        if rank is Rank.OWNER and self._owner_group:
            return f"root, the daemon's own user and the group {self._owner_group}"
        return "root and the daemon's own user"


def _fine(data: object) -> ControlAnswer:
    return ControlAnswer(ok=True, data=msgspec.Raw(msgspec.json.encode(data)))


def _not(error: str, hint: str = "", code: Code = "failed") -> ControlAnswer:
    return ControlAnswer(ok=False, error=error, hint=hint, code=code)


def _turn_away(connection: socket.socket, why: str) -> None:
    """Say why, as far as that goes without waiting, and hang up."""
    said = msgspec.json.encode(_not(why, "try again, or end the others", "busy")) + b"\n"
    with connection:
        try:
            connection.send(said, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return  # gone already


def _listening(path: Path) -> socket.socket:
    """A socket that listens at a path, for its owner and group; nobody can connect before its mode is set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.bind(str(path))
        path.chmod(0o660)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise DrivewayError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listening


def _owners(group: str) -> int | None:
    """The owner group's number, or None where nobody can be seen to be in it, which is told."""
    gid = group_named(group)
    if gid is None:
        logger().warning("owner_group_unknown", group=group)
    elif not is_seen(gid, Path("/proc/self/gid_map").read_text("ascii")):
        logger().warning("owner_group_hidden", group=group, hint="its unit has PrivateUsers=, see docs/control.md")
    else:
        return gid
    return None


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full
        except OSError:
            return False
        return True
