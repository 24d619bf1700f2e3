"""Bulk in a memfd: filled piece by piece where it arrives, sealed, and handed on by its descriptor alone.

A job's input goes to a worker like this; an engine's plan comes from the worker that built it, and goes to the next.
So it is in memory once, is never copied as a whole, and never keeps the event loop: each piece is one system call,
during which other threads run. Once sealed, nobody can change it, the worker that gets the descriptor included.

Whoever holds one closes it, and using it afterwards is an error, since its number may be another file's by then. One
that nobody holds any more (the result of a thread that was given up) is closed as it is forgotten.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from typing import Self

from agent.errors import WorkerError

_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_FROZEN = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_PIECE_BYTES = 256 * 1024


class InputMemory:
    """`length` bytes in memory that is not this process's alone. From one thread at a time; raises WorkerError."""

    def __init__(self, adopted: int | None = None) -> None:
        """New and empty, or a memfd that another process made (`adopt` checks that it is what it should be)."""
        self.length = 0
        try:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            self._descriptor = os.memfd_create("driveway-bulk", flags) if adopted is None else adopted
        except OSError as error:
            raise _no_memory(error) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def holding(cls, body: bytes) -> Self:
        """A sealed one; for what is small, or not on the event loop."""
        made = cls()
        try:
            made.add(body)
            made.seal()
        except WorkerError:
            made.close()
            raise
        return made

    @classmethod
    def adopt(cls, descriptor: int, length: int) -> Self:
        """The memory behind a descriptor that came from a worker, from now on this object's to close.

        Raises WorkerError unless it is sealed memory of just this length: then nobody can change it any more.
        """
        memory = cls(descriptor)
        try:
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            size = os.fstat(descriptor).st_size
        except OSError as error:
            memory.close()
            raise WorkerError(f"a descriptor that is no sealed memory: {error.strerror}") from error
        if seals & _FROZEN != _FROZEN or size != length:
            memory.close()
            raise WorkerError(f"memory of {size} bytes with the seals {seals:#x}, not {length} bytes sealed")
        memory.length = length
        return memory

    @property
    def descriptor(self) -> int:
        """To be handed on; it stays this object's."""
        if not self._close.alive:
            raise WorkerError("an input that is gone was asked for")
        return self._descriptor

    def add(self, data: bytes | memoryview) -> None:
        """So much more."""
        rest = memoryview(data)
        try:
            while rest:
                written = os.write(self.descriptor, rest[:_PIECE_BYTES])
                self.length += written
                rest = rest[written:]
        except OSError as error:
            raise _no_memory(error) from error

    def restart(self) -> None:
        """Forget what is here."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.length = 0

    def seal(self) -> None:
        """From now on nobody can change it."""
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
        except OSError as error:
            raise _no_memory(error) from error

    def pieces(self) -> Iterator[bytes]:
        """All of it, piece by piece."""
        offset = 0
        while offset < self.length:
            piece = os.pread(self.descriptor, min(_PIECE_BYTES, self.length - offset), offset)
            if not piece:
                raise WorkerError("memory that ends before its end")
            offset += len(piece)
            yield piece

    def read(self) -> bytes:
        """All of it, copied: for tests and simulations."""
        return os.pread(self.descriptor, self.length, 0)

    def close(self) -> None:
        """Give it back; may be called again."""
        self._close()


def _no_memory(error: OSError) -> WorkerError:
    return WorkerError(f"no memory for a job's input or a plan: {error.strerror}")
