"""Reads the computer's own system: its clock's discipline, its network, and whether an update waits.

* The clock: `adjtimex` says whether anybody (NTP, PTP, GNSS through chrony) disciplines the kernel's clock and how far
  off it may be at most; the kernel itself lets that bound grow, and says "unsynchronised" when it has grown to 16 s.
  Unsynchronised, or not told, means that nobody keeps the clock: its error is None, not zero.
* The network: metered where the configuration says so, or where a default route leaves through an interface that the
  configuration names (a modem). No default route, or none that can be read, is unknown.
* The update: one may be installed (`agent.updates`), or a file exists, which the platform's own updater makes when an
  update waits for the computer to be idle.

A look every five seconds takes some tens of microseconds, all from memory (procfs). What cannot be read is logged once.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from agent.core.events import HostSeen
from agent.log import logger
from agent.ports import Clock, Emit

INTERVAL_S = 5.0
TIME_ERROR = 5
STA_UNSYNC = 0x0040
"""linux/timex.h: what adjtimex returns, and the bit of its status, while the clock is not synchronised."""
RTF_UP, RTF_REJECT = 0x0001, 0x0200
"""linux/route.h: a route that is up; one that refuses what it matches."""
READ_BYTES = 1_000_000
"""A routing table longer than this is not read to its end."""
APART_MS = 2
"""Wall and boot time are read again when this much passed between them; at most three times."""

Metered = Literal["auto", "yes", "no"]


class _Timex(ctypes.Structure):
    """`struct timex` of linux/timex.h, as far as it is read; the rest is room for the kernel to write into."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_clock() -> tuple[int, int, int]:
    """(state, status, maximum error in microseconds) by adjtimex, which changes nothing here; raises OSError."""
    timex = _Timex()
    state = _LIBC.adjtimex(ctypes.byref(timex))
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(state), int(timex.status), int(timex.maxerror)


_LIBC = ctypes.CDLL(None, use_errno=True)


class Host:
    """A source (`agent.ports.Source`) of HostSeen. `proc` and `adjtimex` are where a test puts its own."""

    def __init__(
        self,
        *,
        clock: Clock,
        update_flag: Path,
        update_told: Callable[[], bool] = lambda: False,
        metered: Metered = "auto",
        metered_interfaces: Sequence[str] = (),
        proc: Path = Path("/proc"),
        adjtimex: Callable[[], tuple[int, int, int]] = kernel_clock,
    ) -> None:
        self._clock, self._metered = clock, metered
        self._update_flag, self._update_told = update_flag, update_told
        self._patterns, self._proc, self._adjtimex = tuple(metered_interfaces), proc, adjtimex
        self._unread: set[str] = set()

    async def run(self, emit: Emit) -> None:
        """Look and emit until cancelled."""
        while True:
            emit(self.read())
            await asyncio.sleep(INTERVAL_S)

    def read(self) -> HostSeen:
        """One look, taken now."""
        at_ms, wall_ms = self._both_clocks()
        return HostSeen(
            at_ms=at_ms,
            wall_ms=wall_ms,
            wall_error_ms=self._wall_error_ms(),
            metered=self._is_metered(),
            update_pending=self._update_told() or self._is_flagged(),
        )

    def _is_flagged(self) -> bool:
        return os.path.exists(self._update_flag)  # noqa: PTH110 - `Path.exists` raises without permission

    def _both_clocks(self) -> tuple[int, int]:
        """Boot and wall time of one moment, although the system may do something else between the two readings."""
        for _ in range(3):
            at_ms, wall_ms = self._clock.boot_ms(), self._clock.wall_ms()
            if self._clock.boot_ms() - at_ms <= APART_MS:
                break
        return at_ms, wall_ms

    def _wall_error_ms(self) -> int | None:
        try:
            state, status, error_us = self._adjtimex()
        except OSError as error:
            self._cannot("the kernel's clock discipline", error)
            return None
        self._can("the kernel's clock discipline")
        return wall_error_ms(state, status, error_us)

    def _is_metered(self) -> bool | None:
        if self._metered != "auto":
            return self._metered == "yes"
        interfaces = default_interfaces(self._table("route"), self._table("ipv6_route"))
        if not interfaces:
            return None
        return any(fnmatchcase(name, pattern) for name in interfaces for pattern in self._patterns)

    def _table(self, name: str) -> str:
        path = self._proc / "net" / name
        try:
            with path.open("rb") as file:
                text = file.read(READ_BYTES).decode("ascii", "replace")
        except FileNotFoundError:
            return ""  # a kernel without this IP version
        except OSError as error:
            self._cannot(str(path), error)
            return ""
        self._can(str(path))
        return text

    def _cannot(self, what: str, error: OSError) -> None:
        if what not in self._unread:
            self._unread.add(what)
            logger().warning("host_unreadable", what=what, error=error.strerror or repr(error))

    def _can(self, what: str) -> None:
        if what in self._unread:
            self._unread.discard(what)
            logger().info("host_readable", what=what)


def wall_error_ms(state: int, status: int, error_us: int) -> int | None:
    """The bound on the wall clock's error in milliseconds, rounded up; None while nobody keeps the clock."""
    if state == TIME_ERROR or status & STA_UNSYNC or error_us < 0:
        return None
    return -(-error_us // 1000)


def default_interfaces(ipv4: str, ipv6: str) -> frozenset[str]:
    """The interfaces of the preferred default routes of both IP versions, from procfs's tables; lines that are no
    routes are skipped.
    """
    return _preferred(_ipv4_defaults(ipv4)) | _preferred(_ipv6_defaults(ipv6))


def _preferred(routes: Iterable[tuple[int, str]]) -> frozenset[str]:
    """Of (metric, interface) those with the lowest metric: the kernel sends through one of them."""
    found = list(routes)
    best = min((metric for metric, _ in found), default=0)
    return frozenset(name for metric, name in found if metric == best)


def _ipv4_defaults(table: str) -> Iterable[tuple[int, str]]:
    """/proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT."""
    for line in table.splitlines()[1:]:
        match line.split():
            case [name, destination, _gateway, flags, _references, _use, metric, mask, *_]:
                if _number(destination, 16) == 0 == _number(mask, 16) and _leads_out(name, _number(flags, 16)):
                    yield _number(metric, 10), name
            case _:
                pass


def _ipv6_defaults(table: str) -> Iterable[tuple[int, str]]:
    """/proc/net/ipv6_route: destination, length, source, length, next hop, metric, references, use, flags, device."""
    for line in table.splitlines():
        match line.split():
            case [destination, length, _source, _length, _hop, metric, _references, _use, flags, name]:
                if _number(destination, 16) == 0 == _number(length, 16) and _leads_out(name, _number(flags, 16)):
                    yield _number(metric, 16), name
            case _:
                pass


def _leads_out(name: str, flags: int) -> bool:
    return name != "lo" and flags > 0 and flags & RTF_UP != 0 and flags & RTF_REJECT == 0


def _number(digits: str, base: int) -> int:
    """A number of the kernel's tables; -1 for anything else."""
    try:
        return int(digits, base) if digits.isalnum() and digits.isascii() else -1
    except ValueError:
        return -1
