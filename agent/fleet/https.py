"""One HTTPS connection for bulk data: what may be reached, how long it may take, and how it is cut off at once.

The standard library's client blocks, so this runs on a thread; the socket is opened here, so that another thread can
shut it down at any moment (`Cut`), also while it connects. Beside each connection a watch sees to it that enough moves:
a server that drips is left, whatever it drips (handshake, headers or body), and so is one that takes longer than the
limits allow. Redirects are not followed: the address was signed, and so is what comes from there.

Every failure is a FleetError that names the URL without its query (which may hold a secret) and never repeats what the
server said. Of those a `TransientError` may go well if tried again; `PausedError` is our own doing.
"""

from __future__ import annotations

import contextlib
import errno
import http
import http.client
import os
import select
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from io import BufferedReader
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from agent.errors import FleetError
from agent.fleet.channel import Channel, Limits, PausedError, TransientError, Web, shut

CHUNK_BYTES = 256 * 1024
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
HEAD_BYTES = 500
HANDSHAKE_BYTES = 4_000
"""What a request's or an answer's head, and each side of a TLS handshake with certificates, are counted as."""
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
PASSING_TLS_ERRORS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""The connection broke, rather than: one side does not believe the other."""
PASSING_HTTP_ERRORS = (http.client.RemoteDisconnected, http.client.IncompleteRead)
HINT = "is the dispatcher up?"


class _Lines:
    """A stream that remembers the last line that was read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.last = stream, b""

    def readline(self, limit: int = -1) -> bytes:
        self.last = self.stream.readline(limit)
        return self.last

    def close(self) -> None:
        self.stream.close()


class _Response(http.client.HTTPResponse):
    """The standard library takes a head that broke off in the middle for a whole one: half a number is a number."""

    def begin(self) -> None:
        lines = _Lines(cast("BinaryIO", self.fp))
        self.fp = cast("BufferedReader", lines)
        try:
            super().begin()
        except http.client.HTTPException as error:
            if not lines.last.endswith(b"\n"):
                raise http.client.IncompleteRead(lines.last) from error
            raise
        finally:
            if self.fp is not None:
                self.fp = cast("BufferedReader", lines.stream)
        if lines.last.strip() or not lines.last:
            raise http.client.IncompleteRead(lines.last)


class _Https(http.client.HTTPConnection):
    """Its socket is opened and secured here: the standard library's own would make a TLS context for nothing."""

    default_port = http.client.HTTPS_PORT


class Answer:
    """An answer whose body is still to be read."""

    def __init__(self, response: http.client.HTTPResponse, connection: Connection) -> None:
        self._response, self._connection = response, connection
        self.status = response.status

    def header(self, name: str) -> str:
        """A header's value; empty where it is missing."""
        return self._response.getheader(name, "")

    @property
    def length(self) -> int | None:
        """How long the body says that it is."""
        return self._response.length

    def read(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; empty at the end, or where the connection ended early."""
        with self._connection.failures():
            data = self._response.read1(limit)
        if not data:
            self._connection.check()
        self._connection.progressed(received=len(data))
        return data

    def read_all(self, limit: int) -> bytes:
        """The body, at most `limit` + 1 bytes of it."""
        body = bytearray()
        while len(body) <= limit and (chunk := self.read(min(CHUNK_BYTES, limit + 1 - len(body)))):
            body += chunk
        return bytes(body)

    def refused(self) -> FleetError:
        """What to raise for a status that is of no use here."""
        what = f"{self._connection.what} was answered {self.status}"
        if self.status in TRANSIENT:
            return TransientError(what, retry_after_s=_seconds(self.header("Retry-After")))
        return FleetError(what)


def _seconds(text: str) -> float:
    """A Retry-After in seconds; one that is a date counts as none, since the car's clock is not to be trusted."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


class Connection:
    """One connection to one URL, for one exchange after the other. Use as a context manager, on one thread."""

    def __init__(self, channel: Channel, url: str) -> None:
        self._web, self._cut, self._moved, self._url = channel.web, channel.cut, channel.moved, url
        self._http: http.client.HTTPConnection | None = None
        self._target = "/"
        self._watch: _Watch | None = None
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None
        self._shown = url.partition("?")[0]
        self.what = self._shown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def exchange(self, method: str, headers: Mapping[str, str], body: memoryview | None = None) -> Answer:
        """Ask, and wait for the head of the answer; raises FleetError."""
        self.what = f"{method} {self._shown}"
        with self.failures():
            client = self._connected()
            client.putrequest(method, self._target)
            for name, value in headers.items():
                client.putheader(name, value)
            if body is not None:
                client.putheader("Content-Length", str(len(body)))
            client.endheaders()
            self.progressed(sent=HEAD_BYTES, step=True)
            if body is not None:
                self._send(client, body)
            self._response = client.getresponse()
            self.progressed(received=HEAD_BYTES, step=True)
            return Answer(self._response, self)

    def _send(self, client: http.client.HTTPConnection, body: memoryview) -> None:
        """A server that hangs up in the middle may have answered why: that is read then."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for first in range(0, len(body), CHUNK_BYTES):
                chunk = body[first : first + CHUNK_BYTES]
                client.send(chunk)
                self.progressed(sent=len(chunk))

    def _connected(self) -> http.client.HTTPConnection:
        if self._http is None:
            parts = urllib.parse.urlsplit(self._url)
            self._target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            self._http = self._client(parts)
        before = self._response
        if before is not None and before.length == 0:
            before.read()  # the connection is free for the next exchange
        if self._http.sock is None or (before is not None and not before.isclosed()):
            self._close_socket()
            self._http.sock = self._open(self._http)
        return self._http

    def _client(self, parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        client: http.client.HTTPConnection
        if parts.scheme == "https" and host:
            client = _Https(host, parts.port)
        elif parts.scheme == "http" and host in LOOPBACK and self._web.allow_loopback_http:
            client = http.client.HTTPConnection(host, parts.port)
        else:
            hint = "objects come over https; http is for a rig on this machine"
            raise FleetError(f"will not fetch {self._shown}", hint=hint)
        client.auto_open = 0
        client.response_class = _Response
        return client

    def _open(self, client: http.client.HTTPConnection) -> socket.socket:
        """Connect to the first address that answers, and shake hands."""
        failure: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(client.host, client.port, type=socket.SOCK_STREAM):
            self._socket = plain = socket.socket(family, kind, protocol)
            try:
                self._connect(plain, address)
            except OSError as error:
                self._close_socket()
                self.check()
                failure = error
                continue
            return self._secured(client, plain)
        raise failure or OSError("the name has no address")

    def _connect(self, plain: socket.socket, address: Any) -> None:
        """Raises OSError. It can be shut down only once it has begun to connect: before, that does nothing to it."""
        plain.setblocking(False)
        code = plain.connect_ex(address)
        if code in {0, errno.EINPROGRESS}:
            self._take(plain)
            waiting = select.poll()
            waiting.register(plain, select.POLLOUT)
            if not waiting.poll(self._web.limits.wait_s * 1000):
                raise TimeoutError("timed out")
            self.check()
            code = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        plain.settimeout(self._web.limits.wait_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _secured(self, client: http.client.HTTPConnection, plain: socket.socket) -> socket.socket:
        if not isinstance(client, _Https):
            return plain
        context = self._web.context()
        self._cut.leave(plain)
        safe = context.wrap_socket(plain, server_hostname=client.host, do_handshake_on_connect=False)
        self._take(safe)
        safe.do_handshake()
        self.progressed(sent=HANDSHAKE_BYTES, received=HANDSHAKE_BYTES, step=True)
        return safe

    def _take(self, one: socket.socket) -> None:
        """From now on this is the socket, to be cut off by the watch or from outside."""
        self._socket = one
        self._cut.take(one)
        if self._watch is None:
            self._watch = _Watch(one, self._web.limits)
        else:
            self._watch.watched = one

    def progressed(self, sent: int = 0, received: int = 0, *, step: bool = False) -> None:
        """Something moved; a `step` (connected, asked, answered) is progress whatever its size."""
        self._moved.add(sent, received)
        if self._watch is not None:
            self._watch.moved += sent + received + (self._web.limits.progress_bytes if step else 0)

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Tell what is raised within as what it is."""
        try:
            yield
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.check()
            if isinstance(error, http.client.HTTPException):  # its text would be the server's
                what = f"{self.what} failed: {type(error).__name__}"
            else:
                what = f"{self.what} failed: {error}"
            if _passing(error):
                raise TransientError(what, hint=HINT) from error
            raise FleetError(what, hint=HINT) from error

    def check(self) -> None:
        """Raise what ended the connection from this side, if something did."""
        if self._cut.done:
            raise PausedError(f"{self.what} was paused")
        if self._watch is not None and self._watch.complaint:
            raise TransientError(f"{self.what} failed: {self._watch.complaint}", hint=HINT)

    def _close(self) -> None:
        self._close_socket()
        if self._watch is not None:
            self._watch.over()

    def _close_socket(self) -> None:
        if self._response is not None:
            self._response.close()
        if self._http is not None:
            self._http.close()
        if self._socket is not None:
            self._cut.leave(self._socket)
            self._socket.close()
            self._socket = None


def _passing(error: Exception) -> bool:
    """Whether the next attempt may do better."""
    match error:
        case http.client.HTTPException():
            return isinstance(error, PASSING_HTTP_ERRORS)
        case ssl.SSLError():
            return isinstance(error, PASSING_TLS_ERRORS)
        case _:
            return isinstance(error, OSError)


class _Watch:
    """Cuts a socket off over which too little moves, or that is open for too long: a thread beside the transfer's."""

    def __init__(self, watched: socket.socket, limits: Limits) -> None:
        self.watched, self._limits = watched, limits
        self._over = threading.Event()
        self.moved = 0
        self.complaint = ""
        self._thread = threading.Thread(target=self._run, name="transfer-watch", daemon=True)
        self._thread.start()

    def over(self) -> None:
        """Nothing is left to be watched."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        limits, before, left_s = self._limits, 0, self._limits.connection_s
        while not self._over.wait(min(limits.progress_s, left_s)):
            left_s -= limits.progress_s
            if left_s <= 0:
                self.complaint = f"it took longer than {limits.connection_s:g} s"
            elif self.moved - before < limits.progress_bytes:
                self.complaint = f"it took longer than {limits.progress_s:g} s to move {limits.progress_bytes} bytes"
            before = self.moved
            if self.complaint:
                shut(self.watched)
                return


def request(web: Web, method: str, url: str, body: bytes | None, limit: int) -> tuple[int, bytes]:
    """One request: its status and at most `limit` + 1 bytes of its answer. Blocks; raises FleetError."""
    with Connection(Channel(web), url) as connection:
        answer = connection.exchange(method, {}, None if body is None else memoryview(body))
        return answer.status, answer.read_all(limit)
