"""The worker's end of the socket: frames in, frames out, and the sealed memory that rides with them.

What is large (a job's input, an engine's plan) lies in a memfd whose descriptor comes with the frame that announces it.
It is taken only as large as announced, and only when nobody can change it any more; what goes out is sealed likewise.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
from collections import deque
from collections.abc import Sequence

from agent.wire import DaemonMessage, Input, WireError, WorkerMessage, daemon_messages, decode_input, encode

_READ_BYTES = 64 * 1024
_MAX_DESCRIPTORS = 4
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
_ALL_SEALS = _SEALS | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_PIECE_BYTES = 256 * 1024


class ChannelClosedError(Exception):
    """The daemon's end is gone, and so must we be."""


class Channel:
    """A blocking socket to the daemon."""

    def __init__(self, connection: socket.socket, riding: Sequence[int] = ()) -> None:
        """`riding` are descriptors that go out with the first frame, and are closed here then."""
        self._socket, self._riding = connection, tuple(riding)
        self._decoder = daemon_messages()
        self._writing = False
        self._descriptors: deque[int] = deque()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message: WorkerMessage, memories: Sequence[bytes | memoryview] = ()) -> None:
        """Write one frame, waiting for the daemon to take it; each of `memories` rides with it in a sealed memfd.

        Raises ChannelClosedError, or MemoryError when there is none for a memfd.
        """
        frame = encode(message)
        descriptors, self._riding = [*self._riding], ()
        try:
            descriptors.extend(_sealed(body) for body in memories)
            self._writing = True
            sent = socket.send_fds(self._socket, [frame], descriptors) if descriptors else 0
            self._socket.sendall(frame[sent:])
            self._writing = False  # and only now: a frame that failed halfway is followed by none
        except OSError as error:
            raise ChannelClosedError from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def send_at_once(self, frame: bytes) -> None:
        """Write a frame as last word, if that can be done now and none is half written; from a signal's handler."""
        if not self._writing:
            with contextlib.suppress(OSError):
                self._socket.send(frame, socket.MSG_DONTWAIT)

    def receive(self, timeout_s: float | None) -> list[DaemonMessage]:
        """The messages that come within `timeout_s` (None: as long as it takes; 0: only what is there).

        Returns as soon as something comes, maybe only a part of a frame and so no message.
        Raises ChannelClosedError, or WireError for what is not a frame.
        """
        timeout_ms = None if timeout_s is None else timeout_s * 1000
        if not self._poll.poll(timeout_ms):
            return []
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._socket, _READ_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise ChannelClosedError from error
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC:
            raise WireError("more descriptors than an input needs")
        if not data:
            raise ChannelClosedError
        return self._decoder.feed(data)

    def take_items(self, message: Input) -> list[bytes]:
        """The items of the input that came with `message`; raises WireError when it is not what the frame said."""
        with self.take_memory(message.bytes) as body:
            items = decode_input(body)
        if len(items) != message.items:
            raise WireError(f"an input of {len(items)} items, not {message.items}")
        return items

    def take_memory(self, length: int) -> memoryview:
        """The memory of `length` bytes that came with a frame, read-only and mapped as long as anybody looks at it.

        Memories are to be taken in the order of their frames. Raises WireError when there is none, or another.
        """
        if not self._descriptors:
            raise WireError("a frame without its memfd")
        descriptor = self._descriptors.popleft()
        try:
            size = os.fstat(descriptor).st_size
            if size != length or size == 0:
                raise WireError(f"a memfd of {size} bytes, not {length}")
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise WireError("a memfd that is not sealed")
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
        except OSError as error:
            raise WireError(f"a descriptor that is no memfd: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _sealed(body: bytes | memoryview) -> int:
    """A descriptor of new memory that holds `body` and that nobody can change."""
    try:
        descriptor = os.memfd_create("driveway-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise MemoryError(f"no memfd: {error.strerror}") from error
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(descriptor, rest[:_PIECE_BYTES]) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except OSError as error:
        os.close(descriptor)
        raise MemoryError(f"no memory for {len(body)} bytes: {error.strerror}") from error
    return descriptor
