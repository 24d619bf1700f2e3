"""A job's input in a memfd: filled piece by piece where it arrives, sealed, and handed on by its descriptor alone.

So 64 MiB are in memory once, are never copied as a whole, and never keep the event loop: each piece is one system call,
during which other threads run. Once sealed, nobody can change it, the worker that gets the descriptor included.

Whoever holds one closes it, and using it afterwards is an error, since its number may be another file's by then. One
that nobody holds any more (the result of a thread that was given up) is closed as it is forgotten.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from typing import Self

from agent.errors import WorkerError

_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_PIECE_BYTES = 256 * 1024


class InputMemory:
    """`length` bytes in memory that is not this process's alone. From one thread at a time; raises WorkerError."""

    def __init__(self) -> None:
        self.length = 0
        try:
            self._descriptor = os.memfd_create("driveway-input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
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

    def read(self) -> bytes:
        """All of it, copied: for tests and simulations."""
        return os.pread(self.descriptor, self.length, 0)

    def close(self) -> None:
        """Give it back; may be called again."""
        self._close()


def _no_memory(error: OSError) -> WorkerError:
    return WorkerError(f"no memory for a job's input: {error.strerror}")
