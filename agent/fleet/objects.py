"""Fetching bulk data by URL and digest: nothing is used that is not, to the byte, what the signed grant named.

The length is known from the grant and read no further; the digest
is checked before the bytes are handed on. Runs on a thread: the standard library's client blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator

import msgspec

from agent.errors import FleetError

TIMEOUT_S = 10.0
DEADLINE_S = 60.0
"""The whole transfer, however slowly it drips."""
CHUNK_BYTES = 256 * 1024
MAX_OBJECT_BYTES = 64 * 1024 * 1024
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Web(msgspec.Struct, frozen=True):
    """What may be fetched: HTTPS, by this TLS context; plain HTTP to this machine if the configuration says so."""

    context: ssl.SSLContext | None = None
    allow_loopback_http: bool = False


async def fetch(web: Web, url: str, sha256: str, length: int) -> bytes:
    """The object's bytes; raises FleetError that names the URL and what was wrong (never what the server said)."""
    if length > MAX_OBJECT_BYTES:
        raise FleetError(f"the object {url} is {length} bytes, more than the {MAX_OBJECT_BYTES} that are fetched")
    status, body = await asyncio.to_thread(request, web, "GET", url, None, length)
    if status != http.HTTPStatus.OK:
        raise FleetError(f"GET {url} was answered {status}")
    if len(body) != length:
        raise FleetError(f"the object {url} is not the {length} bytes long that were promised")
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise FleetError(f"the object {url} has SHA-256 {found[:16]}…, {sha256[:16]}… was promised")
    return body


def request(web: Web, method: str, url: str, body: bytes | None, limit: int) -> tuple[int, bytes]:
    """One request: its status and at most `limit` + 1 bytes of its answer. Blocks; raises FleetError."""
    hint = "is the dispatcher up?"
    try:
        parts = urllib.parse.urlsplit(url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        with contextlib.closing(_connection(web, url, parts)) as connection:
            connection.connect()
            with _within(connection.sock, DEADLINE_S):
                connection.request(method, target, body)
                with connection.getresponse() as answer:
                    return answer.status, _read(answer, limit)
    except http.client.HTTPException as error:  # its text would be the server's
        raise FleetError(f"{method} {url} failed: {type(error).__name__}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise FleetError(f"{method} {url} failed: {error}", hint=hint) from error


def _connection(web: Web, url: str, parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=web.context)
    if parts.scheme == "http" and host in LOOPBACK and web.allow_loopback_http:
        return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    raise FleetError(f"will not fetch {url}", hint="objects come over https; http is for a rig on this machine")


@contextlib.contextmanager
def _within(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the connection off after `seconds`, however slowly it drips; raises TimeoutError then."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError(f"it took longer than {seconds:g} s")


def _read(answer: http.client.HTTPResponse, limit: int) -> bytes:
    """At most `limit` + 1 bytes."""
    body = bytearray()
    while len(body) <= limit and (chunk := answer.read1(min(CHUNK_BYTES, limit + 1 - len(body)))):
        body += chunk
    return bytes(body)
