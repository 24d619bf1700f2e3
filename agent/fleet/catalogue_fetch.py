"""Fetching the files of a catalogue: small, of a length that is not always known, believed only after verification.

    200 / 206 --> more of the file;  403, 404 --> NotThereError;  more than was asked for --> TooLongError
    5xx, 429, connection lost --back-off--> again from where it broke off (Range), as long as that brings anything

What came of a file before the connection broke is kept in memory for the next attempt. Should the file have changed in
between, its signature or its hash does not hold, and the next refresh fetches it from the beginning. Blocks: on a
thread, under the channel's `Cut`, within the limits of `agent.fleet.https`.
"""

from __future__ import annotations

import http

from agent.fleet.channel import Channel, TransientError
from agent.fleet.https import CHUNK_BYTES, Connection
from agent.fleet.objects import CONTENT_RANGE
from agent.fleet.retry import Patience, Retry
from agent.trust.catalogue import NotThereError, TooLongError

PATIENCE = Patience(for_s=120.0, fruitless=3)
NOT_THERE = frozenset({http.HTTPStatus.NOT_FOUND, http.HTTPStatus.FORBIDDEN})


def fetch_file(channel: Channel, url: str, most_bytes: int, patience: Patience = PATIENCE) -> bytes:
    """The whole file, of at most so many bytes. Raises NotThereError, TooLongError, FleetError (PausedError if cut)."""
    retry, body = Retry(patience, channel.cut), bytearray()
    while True:
        channel.cut.check()
        try:
            _attempt(channel, url, most_bytes, body)
        except TransientError as error:
            retry.reached(len(body))
            retry.wait(error)
        else:
            return bytes(body)


def _attempt(channel: Channel, url: str, most_bytes: int, body: bytearray) -> None:
    """Fetch what is missing of `body`; raises TransientError where the next attempt may bring more."""
    with Connection(channel, url) as connection:
        answer = connection.exchange("GET", {"Range": f"bytes={len(body)}-"} if body else {})
        given = CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        if answer.status in NOT_THERE:
            raise NotThereError(f"{connection.what} was answered {answer.status}")
        if answer.status == http.HTTPStatus.OK:
            body.clear()
        elif not body or answer.status not in {
            http.HTTPStatus.PARTIAL_CONTENT,
            http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        }:
            raise answer.refused()
        elif given is None or int(given[1]) != len(body):
            body.clear()
            raise TransientError(f"{connection.what} was answered with another range than was asked for")
        wanted = None if answer.length is None else len(body) + answer.length
        if wanted is not None and wanted > most_bytes:
            raise TooLongError(f"{connection.what}: {wanted} bytes, more than the {most_bytes} it may have")
        while chunk := answer.read(min(CHUNK_BYTES, most_bytes + 1 - len(body))):
            body += chunk
            if len(body) > most_bytes:
                raise TooLongError(f"{connection.what}: more than the {most_bytes} bytes it may have")
        if wanted is not None and len(body) < wanted:
            raise TransientError(f"{connection.what} ended after {len(body)} of {wanted} bytes")
