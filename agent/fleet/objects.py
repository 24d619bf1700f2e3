"""Fetching bulk data by URL and digest: nothing is used that is not, to the byte, what the signed grant named.

HTTPS, or plain HTTP to this machine only (rigs). The length is known from the grant and read no further; the digest
is checked before the bytes are handed on. Runs on a thread: the standard library's client blocks.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import ssl
import urllib.parse

from agent.errors import FleetError

TIMEOUT_S = 10.0
MAX_OBJECT_BYTES = 64 * 1024 * 1024
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


async def fetch(url: str, sha256: str, length: int, context: ssl.SSLContext | None = None) -> bytes:
    """The object's bytes; raises FleetError that names the URL and what was wrong."""
    if length > MAX_OBJECT_BYTES:
        raise FleetError(f"the object {url} is {length} bytes, more than the {MAX_OBJECT_BYTES} that are fetched")
    body = await asyncio.to_thread(request, "GET", url, None, length, context)
    if len(body) != length:
        raise FleetError(f"the object {url} is {len(body)} bytes long, {length} were promised")
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise FleetError(f"the object {url} has SHA-256 {found[:16]}…, {sha256[:16]}… was promised")
    return body


def request(method: str, url: str, body: bytes | None, limit: int, context: ssl.SSLContext | None = None) -> bytes:
    """One request, at most `limit` + 1 bytes of its answer; raises FleetError on any status but 200. Blocks."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=context)
    elif parts.scheme == "http" and host in LOOPBACK:
        connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    else:
        raise FleetError(f"will not fetch {url}", hint="objects come over https, or over http from this machine")
    try:
        connection.request(method, parts.path or "/", body)
        answer = connection.getresponse()
        found = answer.read(limit + 1)
    except (OSError, http.client.HTTPException) as error:
        raise FleetError(f"{method} {url} failed: {error}", hint="is the dispatcher up?") from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise FleetError(f"{method} {url} was answered {answer.status}: {found[:200].decode('utf-8', 'replace')}")
    return found
