"""What systemd says to a service by its environment, and what a service says to systemd: sd_notify(3), no library.

A notification is one datagram of `NAME=value` lines. It is sent without waiting: a service manager that does not read
must not hold up the loop that watches for the driver. Outside systemd there is no address, and every word goes nowhere.

Nothing here raises on the way out: a supervisor that cannot be told is none, and the work goes on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""
_MAX_STATUS = 1024


class Notifier:
    """Says what a service has to say; `address` is $NOTIFY_SOCKET, empty outside systemd."""

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._socket: socket.socket | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Notifier:
        """The one that this environment names."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    @property
    def is_heard(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address.startswith(("/", "@"))

    def ready(self) -> bool:
        """The service does from now on what it is for."""
        return self._say("READY=1")

    def status(self, text: str) -> bool:
        """What it does just now, in a line for people (`systemctl status`)."""
        line = " ".join(text.split())
        return self._say(f"STATUS={line[:_MAX_STATUS]}")

    def alive(self) -> bool:
        """Feed the watchdog."""
        return self._say("WATCHDOG=1")

    def stopping(self) -> bool:
        """The service is about to end."""
        return self._say("STOPPING=1")

    def close(self) -> None:
        """Give the socket back; may be called again, and whatever is said afterwards opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, lines: str) -> bool:
        """Whether it was taken; False too where nobody listens."""
        if not self.is_heard:
            return False
        # An address with @ is in the abstract namespace, which the kernel writes with a leading zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.sendto(lines.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
        except OSError:
            return False
        return True


def watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Within what time the watchdog has to be fed by process `pid`; None: nobody watches it.

    See sd_watchdog_enabled(3): $WATCHDOG_USEC counts for the process in $WATCHDOG_PID, or for any where that is absent.
    """
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    text = environment.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return None
    return int(text) / 1_000_000


def listen_fds(environment: Mapping[str, str], pid: int) -> dict[int, str]:
    """The descriptors that process `pid` was started with, each with its unit's FileDescriptorName=.

    See sd_listen_fds_with_names(3): they begin with 3, and are `unknown` where the environment names none.
    """
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(pid) or not (count.isascii() and count.isdigit()):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names = names if len(names) == int(count) else ["unknown"] * int(count)
    return {FIRST_DESCRIPTOR + place: name for place, name in enumerate(names)}


def is_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether what is written to this descriptor goes to the journal: $JOURNAL_STREAM is its device and inode."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
