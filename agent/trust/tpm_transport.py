"""One TPM command and its reply, within a time limit: over the kernel's character device, or a socket of an emulator.

An address is a path such as `/dev/tpmrm0`, `unix:PATH` or `tcp:HOST:PORT` (as `swtpm socket` serves). The kernel's
device with resource manager, `tpmrm0`, can be open many times and gives each opener the few object slots of the chip;
`tpm0` can be open once and shares them.

A firmware TPM may hang: its driver waits for a world that does not answer. So the device is opened without blocking,
the command is one write, and the reply is waited for with poll() until the limit is over. What cannot be kept from
blocking is closing a device whose command is still under way (the kernel waits for it), so a transport that ran out of
time is closed by a thread of its own, which nobody waits for.

Everything that goes wrong is a `KeyAbsentError` (nothing there) or a `KeySlowError` (no answer in time), both
`TrustError`. What a reply says is for `agent.trust.tpm_wire` to judge: here only its announced length is looked at.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from agent.errors import TrustError
from agent.trust.keys import KeyAbsentError, KeySlowError

HEADER_BYTES = 10
MAX_REPLY_BYTES = 4096
"""The kernel's buffer for a command and for a reply (TPM_BUFSIZE); no TPM's replies are larger."""
_MILLISECONDS = 1000


class Deadline:
    """A moment on the monotonic clock by which something has to be over."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._until_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Seconds that are left, 0 when it is over."""
        return max(0.0, self._until_s - time.monotonic())


class Transport(Protocol):
    """An open way to a TPM."""

    def exchange(self, command: bytes, deadline: Deadline) -> bytes:
        """The reply to a command; raises KeyAbsentError or KeySlowError. After either, close it."""
        ...

    def close(self) -> None:
        """Let go of it. Does not block."""
        ...


class DescriptorTransport:
    """A TPM behind a file descriptor that does not block: a character device, or a connected socket."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._is_pending = False

    @classmethod
    def open_device(cls, path: str) -> Self:
        """The kernel's device; raises KeyAbsentError with what to do about it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise KeyAbsentError(f"the TPM {path} cannot be opened: {error.strerror}", hint=_hint(error)) from error
        if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise KeyAbsentError(f"{path} is no character device", hint="name the TPM's device, as /dev/tpmrm0")
        return cls(descriptor, path)

    @classmethod
    def connect(cls, family: socket.AddressFamily, address: str | tuple[str, int], deadline: Deadline) -> Self:
        """An emulator's socket; raises KeyAbsentError when nobody answers there."""
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(max(deadline.left_s(), 0.001))
            connection.connect(address)
            connection.setblocking(False)
        except OSError as error:
            connection.close()
            raise KeyAbsentError(f"no TPM answers on {address}: {error.strerror or error}") from error
        return cls(connection.detach(), str(address))

    def exchange(self, command: bytes, deadline: Deadline) -> bytes:
        """See `Transport`."""
        self._is_pending = True
        try:
            self._write(command, deadline)
            reply = self._read(deadline)
        except OSError as error:
            raise KeyAbsentError(f"the TPM {self._name} is gone: {error.strerror or error}") from error
        self._is_pending = False
        return reply

    def close(self) -> None:
        """See `Transport`."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        if self._is_pending:
            threading.Thread(target=os.close, args=(descriptor,), name="tpm-close", daemon=True).start()
        else:
            os.close(descriptor)

    def _write(self, command: bytes, deadline: Deadline) -> None:
        """The command; a device takes it in one write, and must be given it in one."""
        rest = memoryview(command)
        while rest:
            self._wait(select.POLLOUT, deadline, "take a command")
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:  # the command before is still under way
                    raise
                time.sleep(min(0.01, deadline.left_s()))

    def _read(self, deadline: Deadline) -> bytes:
        reply = b""
        while len(reply) < HEADER_BYTES or len(reply) < self._announced(reply):
            self._wait(select.POLLIN, deadline, "answer")
            try:
                part = os.read(self._descriptor, MAX_REPLY_BYTES)
            except BlockingIOError:
                continue
            if not part:
                raise KeyAbsentError(f"the TPM {self._name} hung up in the middle of a reply")
            reply += part
        return reply

    def _announced(self, reply: bytes) -> int:
        """How long the reply says that it is."""
        size: int = struct.unpack_from(">I", reply, 2)[0]
        if not HEADER_BYTES <= size <= MAX_REPLY_BYTES:
            raise TrustError(f"the TPM {self._name} announced a reply of {size} bytes")
        return size

    def _wait(self, event: int, deadline: Deadline, what: str) -> None:
        poller = select.poll()
        poller.register(self._descriptor, event)
        if deadline.left_s() <= 0 or not poller.poll(deadline.left_s() * _MILLISECONDS):
            raise KeySlowError(f"the TPM {self._name} did not {what} within {deadline.limit_s:g} s")


Opener = Callable[[Deadline], Transport]
"""Opens a way to the TPM; raises KeyAbsentError."""


def opener(address: str) -> Opener:
    """What opens this address; raises TrustError for one that is none."""
    kind, _, rest = address.partition(":")
    if address.startswith("/"):
        return lambda _deadline: DescriptorTransport.open_device(address)
    if kind == "unix" and rest:
        return lambda deadline: DescriptorTransport.connect(socket.AF_UNIX, rest, deadline)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdigit() and int(port) < 2**16:
        return lambda deadline: DescriptorTransport.connect(socket.AF_INET, (host, int(port)), deadline)
    raise TrustError(f"{address!r} is no TPM's address", hint="write /dev/tpmrm0, unix:PATH or tcp:HOST:PORT")


def _hint(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return "is there a TPM, and is its driver loaded?"
        case errno.EACCES | errno.EPERM:
            return "the agent's user must be in the device's group (tss)"
        case errno.EBUSY:
            return "another program has it open; use /dev/tpmrm0, which many can share"
        case _:
            return ""
