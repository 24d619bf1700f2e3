"""Fetching bulk data by URL and digest: nothing is used that is not, to the byte, what the signed grant named.

The length is known from the grant and read no further; the digest
is checked before the bytes are handed on. Runs on a thread: the standard library's client blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import ssl
import time
import urllib.parse

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
    try:
        parts = urllib.parse.urlsplit(url)
        connection = _connection(web, url, parts)
        with contextlib.closing(connection):
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request(method, target, body)
            answer = connection.getresponse()
            return answer.status, _read(answer, limit)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FleetError(f"{method} {url} failed: {error}", hint="is the dispatcher up?") from error


def _connection(web: Web, url: str, parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    host = parts.hostname or ""
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=web.context)
    if parts.scheme == "http" and host in LOOPBACK and web.allow_loopback_http:
        return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    raise FleetError(f"will not fetch {url}", hint="objects come over https; http is for a rig on this machine")


def _read(answer: http.client.HTTPResponse, limit: int) -> bytes:
    """At most `limit` + 1 bytes, within the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    body = bytearray()
    while len(body) <= limit and (chunk := answer.read1(min(CHUNK_BYTES, limit + 1 - len(body)))):
        body += chunk
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{len(body)} bytes in {DEADLINE_S:.0f} s is too slow")
    return bytes(body)
