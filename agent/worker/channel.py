"""The worker's end of the socket: frames in, frames out, and the descriptors that ride with them."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
from collections import deque

from agent.wire import DaemonMessage, Input, WireError, WorkerMessage, daemon_messages, decode_input, encode

_READ_BYTES = 64 * 1024
_MAX_DESCRIPTORS = 4
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE


class ChannelClosedError(Exception):
    """The daemon's end is gone, and so must we be."""


class Channel:
    """A blocking socket to the daemon."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder = daemon_messages()
        self._descriptors: deque[int] = deque()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, message: WorkerMessage) -> None:
        """Write one frame, waiting for the daemon to take it."""
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise ChannelClosedError from error

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
        if not self._descriptors:
            raise WireError("an Input frame without its memfd")
        descriptor = self._descriptors.popleft()
        try:
            size = os.fstat(descriptor).st_size
            if size != message.bytes or size == 0:
                raise WireError(f"an input of {size} bytes, not {message.bytes}")
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise WireError("an input whose memfd is not sealed")
            with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as body:
                items = decode_input(body)
        finally:
            os.close(descriptor)
        if len(items) != message.items:
            raise WireError(f"an input of {len(items)} items, not {message.items}")
        return items
