"""The socket under paho: it counts what crosses it, and ends the connection over what paho would swallow whole.

paho reads whatever length a packet announces (up to 256 MB) into memory, ignores that a broker was told a smaller
Maximum Packet Size, and keeps every QoS 2 message until its sender releases it. So the frames are looked at here,
header by header, as paho takes them: the first that breaks the rules ends the connection, with the reason in `fault`.
It also reads in pieces of its own, since paho asks for single bytes.

Traffic is counted as a mobile network would: with what TCP, IP and TLS add. Roughly, since acknowledgements and what
is sent twice are not seen from here.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

CHUNK_BYTES = 16 * 1024
HEADER_BYTES = 40
"""IPv4 and TCP, for each piece that is sent or comes in."""
TLS_RECORD_BYTES = 22
"""Header, content type and tag of a TLS 1.3 record (RFC 8446, section 5.2)."""
TLS_HANDSHAKE_BYTES = (3_000, 3_000)
"""About so much is sent and received for a handshake with certificates at both ends."""

PUBLISH, PUBACK = 0x30, 0x40
ANSWERS_TO_QOS_2 = frozenset({0x50, 0x60, 0x70})
SERVER_PACKETS = frozenset({0x20, PUBLISH, PUBACK, 0x90, 0xD0, 0xE0}) | ANSWERS_TO_QOS_2
"""What a server may send (MQTT 5, section 2.1.2) to a client that never unsubscribes and logs in by TLS."""


class FrameGuard:
    """Follows the frames of one stream through their fixed headers; keeps nothing of what is in them.

    `frames` counts those that ended, `pubacks` the acknowledgements among them.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self._max_bytes = max_packet_bytes
        self.frames = self.pubacks = 0
        self._command: int | None = None
        self._kind = self._length = self._shift = self._body_left = 0

    def look(self, chunk: bytes) -> None:
        """Follow the next bytes; raises ConnectionError that says which rule is broken."""
        at = 0
        while at < len(chunk):
            if self._body_left:
                step = min(self._body_left, len(chunk) - at)
                self._body_left -= step
                at += step
                if not self._body_left:
                    self._end()
                continue
            byte = chunk[at]
            at += 1
            if self._command is None:
                self._begin(byte)
            else:
                self._lengthen(byte)

    def _begin(self, command: int) -> None:
        kind = command & 0xF0
        if kind not in SERVER_PACKETS:
            raise ConnectionError(f"the broker sent a packet of type {command >> 4}, which is no server's")
        if kind in ANSWERS_TO_QOS_2:
            raise ConnectionError("the broker sent an answer to a message with QoS 2, and there is none")
        if kind == PUBLISH and command & 0x04:
            raise ConnectionError("the broker sent a message with QoS 2 where at most QoS 1 was asked for")
        self._command, self._kind, self._length, self._shift = command, kind, 0, 0

    def _lengthen(self, byte: int) -> None:
        self._length |= (byte & 0x7F) << self._shift
        self._shift += 7
        if byte & 0x80:
            if self._shift >= 28:
                raise ConnectionError("the broker sent a packet whose length is no number")
            return
        if self._length > self._max_bytes:
            raise ConnectionError(
                f"the broker sent a packet of {self._length} bytes, more than the {self._max_bytes} that it was told"
            )
        self._command, self._body_left = None, self._length
        if not self._length:
            self._end()

    def _end(self) -> None:
        self.frames += 1
        if self._kind == PUBACK:
            self.pubacks += 1


class MeteredSocket:
    """What paho needs of a socket. Use from the network thread; the counts and times may be read from any."""

    def __init__(self, raw: socket.socket | ssl.SSLSocket, max_packet_bytes: int) -> None:
        self._raw = raw
        self.guard = FrameGuard(max_packet_bytes)
        self._buffer, self._at = b"", 0
        tls = isinstance(raw, ssl.SSLSocket)
        self._overhead_bytes = HEADER_BYTES + (TLS_RECORD_BYTES if tls else 0)
        self.sent_bytes, self.received_bytes = TLS_HANDSHAKE_BYTES if tls else (0, 0)
        self.read_bytes = 0
        """How much of what came was handed on."""
        self.heard_at_s = time.monotonic()
        """When bytes came last."""
        self.fault = ""
        """What the network or the broker did wrong; empty while all is well."""
        with contextlib.suppress(OSError):  # a Unix socket has no such delay
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def recv(self, size: int) -> bytes:
        """At most `size` bytes. Raises what the socket raises, and ConnectionError for frames against the rules."""
        if self._at == len(self._buffer):
            try:
                chunk = self._raw.recv(CHUNK_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except OSError as error:
                self.fault = self.fault or plain(error)
                raise
            if not chunk:
                self.fault = self.fault or "the broker closed the connection"
                return b""
            self.heard_at_s = time.monotonic()
            self.received_bytes += len(chunk) + self._overhead_bytes
            self._buffer, self._at = chunk, 0
        piece = self._buffer[self._at : self._at + size]
        try:
            self.guard.look(piece)
        except ConnectionError as error:
            self.fault = self.fault or str(error)
            raise
        self._at += len(piece)
        self.read_bytes += len(piece)
        return piece

    def send(self, data: bytes | bytearray) -> int:
        """Send what the network takes now; how much that was."""
        try:
            count = self._raw.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.fault = self.fault or self._last_words() or plain(error)
            raise
        self.sent_bytes += count + self._overhead_bytes
        return count

    def _last_words(self) -> str:
        """What the other end said of TLS before it closed: its alert comes while we are sending already."""
        try:
            self._raw.recv(CHUNK_BYTES)
        except ssl.SSLError as error:
            return plain(error) if _known(error) else ""
        except OSError:
            pass
        return ""

    def pending(self) -> int:
        """How much was read from the network already: it makes no socket readable."""
        inner = self._raw.pending() if isinstance(self._raw, ssl.SSLSocket) and self._raw.fileno() >= 0 else 0
        return len(self._buffer) - self._at + inner

    def fileno(self) -> int:
        """The file descriptor; -1 once it is closed."""
        return self._raw.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - as sockets have it
        """As a socket's."""
        self._raw.setblocking(flag)

    def close(self) -> None:
        """As a socket's."""
        self._raw.close()

    def cut(self) -> None:
        """End it from another thread: whatever waits for it returns."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._raw, socket.SHUT_RDWR)  # an SSLSocket's own would drop its TLS state


ALERTS = {
    "CERTIFICATE_EXPIRED": "the broker says that this unit's certificate has expired",
    "CERTIFICATE_REVOKED": "the broker says that this unit's certificate was revoked",
    "CERTIFICATE_REQUIRED": "the broker wants a certificate of this unit and got none",
    "BAD_CERTIFICATE": "the broker says that this unit's certificate is bad (it may not be valid yet)",
    "CERTIFICATE_UNKNOWN": "the broker does not accept this unit's certificate",
    "ALERT_UNKNOWN_CA": "the broker does not know the CA that signed this unit's certificate",
    "ACCESS_DENIED": "the broker denies this unit's certificate access",
    "ALERT_PROTOCOL_VERSION": "the broker does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "the broker does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "the broker does not speak TLS on this port",
}
"""OpenSSL's names of what goes wrong with TLS, in words that say who has to do something."""
VERIFY = {
    9: "the broker's certificate is not valid yet by this computer's clock",
    10: "the broker's certificate has expired, or this computer's clock is wrong",
    18: "the broker's certificate is self-signed, not by the fleet's CA",
    19: "the broker's certificate is signed by a CA that this unit does not know",
    20: "the broker's certificate is signed by a CA that this unit does not know",
    21: "the broker's certificate is signed by a CA that this unit does not know",
    62: "the broker's certificate is for another name",
    64: "the broker's certificate is for another address",
}
"""OpenSSL's verification results (X509_V_ERR_*)."""


def plain(error: Exception) -> str:
    """What went wrong on the network, in words; OpenSSL's own come after them."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = VERIFY.get(error.verify_code, "the broker's certificate does not hold")
        return f"{said} ({error.verify_message})"
    said = _known(error)
    return f"{said} ({error.reason})" if isinstance(error, ssl.SSLError) and said else str(error) or repr(error)


def _known(error: Exception) -> str:
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    return next((words for name, words in ALERTS.items() if name in reason), "")
