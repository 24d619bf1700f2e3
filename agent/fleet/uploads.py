"""Bringing answers to where the grant said, under their digest, and going on where the last attempt broke off.

    HEAD {url}/{sha256}  -->  200, Upload-Offset: n (how much of it is there; all of it: done), or 404 (nothing)
    PUT  {url}/{sha256}, Content-Range: bytes n-{last}/{length}
                         -->  201, Upload-Offset: {length}: whole, and its digest was right
                         -->  409: another offset than that: asked for again
                         -->  422: the digest was wrong, what was there is dropped: once more, from the beginning

Each request carries the grant's bearer token. Both go over one connection. What arrived stays with the server, so a
transfer that was paused costs nothing twice.
"""

from __future__ import annotations

import hashlib
import http

from agent.errors import FleetError
from agent.fleet.channel import Channel, TransientError
from agent.fleet.https import Answer, Connection
from agent.fleet.messages import UploadRef
from agent.fleet.objects import on_thread
from agent.fleet.retry import Patience, Retry

OFFSET = "Upload-Offset"


class SpoiledError(TransientError):
    """What arrived was not what was sent; it was dropped there."""


async def put(channel: Channel, place: UploadRef, body: bytes, patience: Patience) -> None:
    """Have `body` at the place's URL, under its SHA-256, whole; raises FleetError, of which PausedError is a cut."""
    if not body:
        raise FleetError(f"nothing is brought to {place.url}: the answers are empty")
    await on_thread(channel.cut, lambda: _upload(channel, place, body, patience))


def _upload(channel: Channel, place: UploadRef, body: bytes, patience: Patience) -> None:
    url = f"{place.url.rstrip('/')}/{hashlib.sha256(body).hexdigest()}"
    retry, spoiled = Retry(patience, channel.cut), False
    while True:
        try:
            _attempt(channel, url, place.token, body, retry)
        except TransientError as error:
            if isinstance(error, SpoiledError) and spoiled:
                raise FleetError(f"{url} did not arrive as it was sent, twice") from error
            spoiled = spoiled or isinstance(error, SpoiledError)
            retry.wait(error)
        else:
            return


def _attempt(channel: Channel, url: str, token: str, body: bytes, retry: Retry) -> None:
    """Send what is missing; raises TransientError where the next attempt may get further."""
    headers = {"Authorization": f"Bearer {token}"}
    with Connection(channel, url) as connection:
        there = _offset(connection.exchange("HEAD", headers), len(body))
        retry.reached(there)
        if there == len(body):
            return
        given = {"Content-Range": f"bytes {there}-{len(body) - 1}/{len(body)}"}
        answer = connection.exchange("PUT", headers | given, memoryview(body)[there:])
        match answer.status:
            case http.HTTPStatus.CREATED:
                if _offset(answer, len(body)) != len(body):
                    raise FleetError(f"PUT {url} was answered with less than was sent")
            case http.HTTPStatus.CONFLICT:
                raise TransientError(str(answer.refused()))
            case http.HTTPStatus.UNPROCESSABLE_ENTITY:
                raise SpoiledError(str(answer.refused()))
            case _:
                raise answer.refused()


def _offset(answer: Answer, length: int) -> int:
    """How much is there; raises FleetError for what says nothing of it."""
    if answer.status == http.HTTPStatus.NOT_FOUND:
        return 0
    if answer.status == http.HTTPStatus.CONFLICT:  # a connection of ours that broke is not over there yet
        raise TransientError(str(answer.refused()))
    if answer.status not in {http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT, http.HTTPStatus.CREATED}:
        raise answer.refused()
    said = answer.header(OFFSET)
    if not (said.isascii() and said.isdigit() and len(said) < 16 and int(said) <= length):
        raise FleetError(f"{answer.refused()} and no usable {OFFSET}")
    return int(said)
