"""Log events as systemd's journal takes them natively: named fields, so `journalctl DRIVEWAY_LEASE=…` finds a lease.

One datagram an event to the journal's socket. A field is `NAME=value`, or in a form that is safe for any bytes: the
name, a line feed, the length as 64 bits little-endian, the value, a line feed (see JOURNAL_NATIVE_PROTOCOL). A datagram
that the socket does not take for its size goes as a sealed memfd instead, which the journal reads. Nothing waits: what
the journal does not take now is printed to standard error as everywhere else, which leads to the journal too.

Sizes are bounded, since a field may hold what a peer sent: a value to VALUE_BYTES, an event to FIELDS fields.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "driveway"
VALUE_BYTES = 64 * 1024
FIELDS = 64
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's, see sd-daemon(3)."""
_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LENGTH = struct.Struct("<Q")
_CUT = "…".encode()


def encode_fields(event: Mapping[str, Any]) -> bytes:
    """An event of structlog as the journal's fields: `event` and `level` by their meaning, the rest as DRIVEWAY_*."""
    rest = [name for name in event if name not in {"event", "level", "timestamp"}][:FIELDS]
    name = _text(event.get("event", ""))
    words = [f"{one}={_text(event[one])}" for one in rest]
    fields = {
        "MESSAGE": " ".join([name, *words]),
        "PRIORITY": str(PRIORITIES.get(str(event.get("level", "info")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "DRIVEWAY_EVENT": name,
        **{_field_name(one): _text(event[one]) for one in rest},
    }
    return b"".join(_field(one, value) for one, value in fields.items())


class JournalLogger:
    """What structlog writes to: one native message an event. `spare` prints the line where the journal takes none."""

    def __init__(self, address: str = SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._address = address

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def msg(self, fields: bytes, spare: str) -> None:
        """Write one event; never raises and never waits."""
        try:
            self._send(fields)
        except OSError:
            sys.stderr.write(f"{spare}\n")

    log = debug = info = warn = warning = error = critical = exception = fatal = msg

    def _send(self, fields: bytes) -> None:
        try:
            self._socket.sendto(fields, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_large(fields)

    def _send_large(self, fields: bytes) -> None:
        """In a sealed memfd, which the journal maps."""
        descriptor = os.memfd_create("driveway-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(fields)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
            riding = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
            self._socket.sendmsg([], riding, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        finally:
            os.close(descriptor)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if len(data) > VALUE_BYTES:
        data = data[:VALUE_BYTES] + _CUT
    if b"\n" in data:
        return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _field_name(name: str) -> str:
    """Upper case letters, digits and underscores, 64 characters at most: other names are dropped by the journal."""
    return f"DRIVEWAY_{re.sub(r'[^A-Z0-9_]', '_', name.upper())}"[:64]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | float):
        return str(value)
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, UnicodeEncodeError):
        return repr(value)
