"""A worker's last words, and how it ended, for a person."""

from __future__ import annotations

import asyncio
import os
import signal

READ_BYTES = 256 * 1024
TAIL_BYTES = 4096


class LastWords:
    """The end of what a worker writes to its standard error, read through `descriptor`, which does not block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._tail = descriptor, b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    def text(self) -> str:
        """The end of all of it; nothing is read any more."""
        self._loop.remove_reader(self._descriptor)
        self._read()
        return self._tail.decode("utf-8", "replace").strip()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if not data:
            self._loop.remove_reader(self._descriptor)


def how_it_ended(pid: int, status: int | None) -> str:
    """In words: an exit status, negative for a signal, None where nobody knows; a `pid` of 0 was never met."""
    if pid == 0:
        return "was given up before it said Hello"
    if status is None:
        return f"ended by a signal that was not ours (journalctl _PID={pid} may have more)"
    return f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
