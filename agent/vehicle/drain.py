"""Empties a datagram socket every 20 ms: the way a bus is read without waking for every frame.

The event loop waits for the socket only while it is quiet. The first datagram wakes it, everything that waits is taken,
and from then on the socket is looked at every 20 ms, until nothing has come for 200 ms. So a silent bus costs
nothing, a busy one 50 short wake-ups a second, and the first frame after a silence is seen at once. The price is up to
20 ms between a frame and its event on a busy bus, a fifth of what giving the computer back may take in all.

All busy sockets are looked at in the same rounds, so that three buses cost the wake-ups of one. While there is nothing
to give back (no worker, no lease) rounds are 100 ms apart: waking up is what costs most, and nobody waits for them. The
fastest leaf may be 250 ms old.

When the socket fails (ENETDOWN, ENODEV), the source says why and opens it again with back-off. Datagrams for which the
kernel had no room are counted from the socket's own statistics (SO_MEMINFO gives the number that SO_RXQ_OVFL would put
beside every single datagram).
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from agent.ports import Clock

DRAIN_S = 0.020
LEISURELY_DRAIN_S = 5 * DRAIN_S
QUIET_S = 0.2
"""A socket that was empty for so long is waited for instead."""
DATAGRAM_BYTES = 4096
"""More than any datagram that is expected, so that an over-long one is seen as what it is and not cut to fit."""
MAX_DATAGRAMS_PER_DRAIN = 512
"""A flooded bus must not keep the loop from everything else. No real bus brings a tenth of this in 20 ms."""
OVERFLOW_INTERVAL_MS = 1_000
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 5.0

# linux/sock_diag.h; the socket module does not have these.
SO_MEMINFO = 55
MEMINFO = struct.Struct("=9I")
MEMINFO_DROPS = 8


class Reader(Protocol):
    """Who makes sense of the datagrams."""

    def opened(self, channel: socket.socket) -> None:
        """A socket was opened; raises OSError when it will not do."""
        ...

    def drained(self, datagrams: list[bytes], at_ms: int) -> None:
        """Everything that came since the last time."""
        ...

    def overflowed(self, count: int) -> None:
        """The kernel threw away this many more datagrams."""
        ...

    def lost(self, detail: str) -> None:
        """The socket cannot be opened, or failed."""
        ...


def grid_s(now_s: float, interval_s: float = DRAIN_S) -> float:
    """The next moment at which every bus is looked at."""
    return (math.floor(now_s / interval_s) + 1) * interval_s


class Rounds:
    """The looks at every busy socket of one event loop, one timer for all of them."""

    def __init__(self) -> None:
        self._busy: list[Drain] = []
        self._timer: asyncio.TimerHandle | None = None
        self._interval_s = DRAIN_S

    def hurry(self, *, hurried: bool) -> None:
        """Whether anything would have to be given back: then every 20 ms, beginning with the next 20 ms."""
        interval_s = DRAIN_S if hurried else LEISURELY_DRAIN_S
        if interval_s == self._interval_s:
            return
        self._interval_s = interval_s
        if self._timer is not None:
            self._timer.cancel()
            self._wait(asyncio.get_running_loop())

    def join(self, drain: Drain) -> None:
        """Look at this socket from the next round on."""
        self._busy.append(drain)
        if self._timer is None:
            self._wait(asyncio.get_running_loop())

    def leave(self, drain: Drain) -> None:
        """Look at it no more."""
        if drain in self._busy:
            self._busy.remove(drain)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(grid_s(loop.time(), self._interval_s), self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # The next round is settled first, so that an error in one look cannot end the looking.
        self._timer = None
        if self._busy:
            self._wait(loop)
        for drain in tuple(self._busy):
            drain.look()


async def keep_draining(open_socket: Callable[[], socket.socket], reader: Reader, clock: Clock, rounds: Rounds) -> None:
    """Open, drain, and open again after a failure, until cancelled."""
    backoff_s = FIRST_BACKOFF_S
    while True:
        opened_ms = clock.boot_ms()
        try:
            channel = open_socket()
        except OSError as error:
            reader.lost(f"cannot be opened: {describe(error)}")
        else:
            reader.lost(await _drain_until_it_fails(channel, reader, clock, rounds))
            if clock.boot_ms() - opened_ms > MAX_BACKOFF_S * 1000:
                backoff_s = FIRST_BACKOFF_S
        await asyncio.sleep(backoff_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def _drain_until_it_fails(channel: socket.socket, reader: Reader, clock: Clock, rounds: Rounds) -> str:
    drain = Drain(channel, reader, clock, rounds)
    try:
        reader.opened(channel)
        drain.wait()
        return await drain.failed
    except OSError as error:
        return describe(error)
    finally:
        drain.close()
        channel.close()


class Drain:
    """One open socket: waited for while it is quiet, looked at in rounds while it is not."""

    def __init__(self, channel: socket.socket, reader: Reader, clock: Clock, rounds: Rounds) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel, self._reader, self._clock, self._rounds = channel, reader, clock, rounds
        self._file = channel.fileno()
        self._waiting = False
        self._found_s = 0.0
        self._overflowed = 0
        self._overflow_due_ms = 0
        self.failed: asyncio.Future[str] = self._loop.create_future()

    def wait(self) -> None:
        """Wake at the next datagram."""
        self._rounds.leave(self)
        self._waiting = True
        self._loop.add_reader(self._file, self._wake)

    def close(self) -> None:
        """Look no more."""
        self._rounds.leave(self)
        if self._waiting:
            self._waiting = False
            self._loop.remove_reader(self._file)

    def look(self) -> None:
        """Take what waits; wait for more where nothing was found for long."""
        datagrams, failure = self._receive()
        if datagrams:
            self._found_s = self._loop.time()
        if failure is not None:
            self.close()
            if not self.failed.done():
                self.failed.set_result(describe(failure))
        elif self._loop.time() - self._found_s > QUIET_S:
            self.wait()
        if datagrams:
            now_ms = self._clock.boot_ms()
            self._count_overflow(now_ms)
            self._reader.drained(datagrams, now_ms)

    def _wake(self) -> None:
        self.close()
        self._rounds.join(self)
        self.look()

    def _receive(self) -> tuple[list[bytes], OSError | None]:
        datagrams: list[bytes] = []
        receive = self._channel.recv
        try:
            while len(datagrams) < MAX_DATAGRAMS_PER_DRAIN:
                datagrams.append(receive(DATAGRAM_BYTES))
        except BlockingIOError:
            pass
        except OSError as error:
            return datagrams, error
        return datagrams, None

    def _count_overflow(self, now_ms: int) -> None:
        if now_ms < self._overflow_due_ms:
            return
        self._overflow_due_ms = now_ms + OVERFLOW_INTERVAL_MS
        dropped = dropped_by_kernel(self._channel)
        if dropped > self._overflowed:
            self._reader.overflowed(dropped - self._overflowed)
            self._overflowed = dropped


def dropped_by_kernel(channel: socket.socket) -> int:
    """How many datagrams the kernel had no room for since the socket was opened; 0 where it does not say."""
    try:
        counts = channel.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
    except OSError:
        return 0
    return int(MEMINFO.unpack(counts)[MEMINFO_DROPS]) if len(counts) == MEMINFO.size else 0


def describe(error: OSError) -> str:
    """What went wrong, in the system's words."""
    return os.strerror(error.errno) if error.errno else str(error)
