"""What a worker writes, taken a little at a time: bytes from its socket in, messages out, descriptors kept with them.

A worker may write as much as it likes, and nothing but the event loop reads it. So no turn of the loop takes more than
`READ_BYTES` or handles more than `MOST_MESSAGES`; what is left stays in the socket, or in the buffer, which holds one
frame and one read at most. Whatever goes wrong with a message, up to a bug in who handles it, is told to `fault` in
words and ends the worker, never the loop. After `shut` what it says further counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from agent import wire
from agent.errors import WorkerError
from agent.inference.unit import CREDENTIALS, DESCRIPTORS, Sender
from agent.sealed import InputMemory

READ_BYTES = 32 * 1024
MOST_MESSAGES = 128
LAST_BYTES = 4 * 1024 * 1024
"""So much of a dead worker's last words is read: more than a socket holds, unless somebody else still writes there."""
_MAX_DESCRIPTORS = 2
"""A plan and a timing cache: no worker has more to hand over, in its whole life."""
_MAX_INTRODUCING = DESCRIPTORS
"""With its first message."""
_INT = struct.Struct("i")


class Inbox:
    """One worker's words. Use on the event loop's thread.

    `take` gets each message and may raise WireError; `heard` is called for whatever comes, be it half a message, and
    `ended` once the worker has closed its socket. One that `introduces` itself brings descriptors with its first
    message, and the kernel its credentials (`agent.inference.unit`).
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        take: Callable[[wire.WorkerMessage], None],
        heard: Callable[[], None],
        fault: Callable[[str], None],
        ended: Callable[[], None],
        introduces: bool = False,
    ) -> None:
        self._socket, self._take, self._heard, self._fault, self._ended = connection, take, heard, fault, ended
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.worker_messages()
        self._descriptors: deque[int] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._more_waits = self._is_shut = False
        self._last_bytes: int | None = None
        self._introduces = introduces
        self._sender: Sender | None = None
        self._loop.add_reader(self._socket, self._readable)

    def take_memory(self, length: int) -> InputMemory:
        """See `agent.inference.launcher.WorkerProcess.take_memory`."""
        if not self._descriptors:
            raise wire.WireError("a message without the memory that it names")
        try:
            return InputMemory.adopt(self._descriptors.popleft(), length)
        except WorkerError as error:
            raise wire.WireError(error.what) from error

    def introduced(self) -> tuple[Sender | None, list[int]]:
        """Who sent the first message, and the descriptors that came with it: the caller's to close."""
        descriptors, self._introduces = [*self._descriptors], False
        self._descriptors.clear()
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        return self._sender, descriptors

    def look(self) -> None:
        """Take some of what waits now, without waiting for the loop."""
        with contextlib.suppress(BlockingIOError):
            self._take_some()

    def shut(self) -> None:
        """What the worker says from now on counts for nothing."""
        self._is_shut, self._more_waits = True, False

    def finish(self, then: Callable[[], None]) -> None:
        """The worker has ended: take its last words, turn by turn, close, and call `then`."""
        if self._last_bytes is None:
            self._last_bytes = 0
            self.pause()
        try:
            goes_on = self._take_some() and not self._is_shut and self._last_bytes < LAST_BYTES
        except BlockingIOError:
            goes_on = False
        if goes_on:
            self._loop.call_soon(self.finish, then)
        else:
            self._close()
            then()

    def pause(self) -> None:
        """Read nothing more by itself."""
        self._loop.remove_reader(self._socket)
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._socket.close()

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._take_some():
                self._loop.remove_reader(self._socket)
                self._ended()

    def _take_some(self) -> bool:
        """Take a little of what it said, and leave the rest for the loop's next turn; False: that was all for ever.

        Raises BlockingIOError when nothing is there now.
        """
        data = b""
        if not self._more_waits:
            data = self._receive()
            if not data:
                return False
            self._heard()
        if not self._is_shut:
            self._pass_on(data)
        if self._more_waits and self._last_bytes is None and self._next_turn is None:
            self._loop.remove_reader(self._socket)
            self._next_turn = self._loop.call_soon(self._go_on)
        return True

    def _go_on(self) -> None:
        """Take some of what was left in the buffer; the socket has its turn when that is empty."""
        self._next_turn = None
        self.look()
        if self._next_turn is None:
            self._loop.add_reader(self._socket, self._readable)

    def _receive(self) -> bytes:
        """What there is to read, empty at its end; descriptors that ride with it are kept for `take_memory`."""
        most = _MAX_INTRODUCING if self._introduces else _MAX_DESCRIPTORS
        room = socket.CMSG_LEN(most * _INT.size) + (socket.CMSG_SPACE(CREDENTIALS.size) if self._introduces else 0)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise
        except OSError:
            return b""
        self._keep(ancillary)
        if self._last_bytes is not None:
            self._last_bytes += len(data)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > most:
            self._fault("broke the protocol: it sent more descriptors than it may")
        return data

    def _keep(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        """What came beside the bytes: descriptors, and of the first bytes who sent them."""
        for _, kind, body in ancillary:
            if kind == socket.SCM_RIGHTS:
                self._descriptors.extend(number for (number,) in _INT.iter_unpack(body[: len(body) // 4 * 4]))
            elif kind == socket.SCM_CREDENTIALS and self._sender is None:
                pid, uid, _ = CREDENTIALS.unpack(body)
                self._sender = Sender(pid, uid)

    def _pass_on(self, data: bytes) -> None:
        self._more_waits = False
        try:
            messages = self._decoder.feed(data, MOST_MESSAGES)
            for message in messages:
                self._take(message)
                if self._is_shut:
                    return
            self._more_waits = len(messages) == MOST_MESSAGES
        except wire.WireError as error:
            self._fault(f"broke the protocol: {error.what}")
        except Exception as error:  # noqa: BLE001 - what a worker says must never reach the loop's own handler
            self._fault(f"what it said could not be handled: {error!r}")
