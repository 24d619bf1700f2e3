"""Bulk data over HTTP: objects out, whole or from anywhere on, and answers in, whole or piece by piece.

    GET, HEAD /objects/{sha256}    200, or with `Range: bytes=…` 206, or 416 behind its end; 404, also for an input that
                                   leaves sealed only
    GET, HEAD /objects/{job}.{epoch}/{sha256}    the same, of an input sealed for this lease
    HEAD      /uploads/{sha256}    200 with Upload-Offset: how much is here
    PUT       /uploads/{sha256}    a piece, with `Content-Range: bytes a-b/n`: 201 when the object is whole and its
                                   digest right, 202 when a piece is missing yet, both with Upload-Offset; 400 no such
                                   piece, 403 no such lease, 409 another offset (it says which), 411, 413 more than
                                   the lease may bring, 422 another digest (all of it is dropped), 503 later, 507 the
                                   disk is full

An upload carries its lease's token (`Authorization: Bearer …`). A name that is no digest is no path anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from http import HTTPStatus
from io import BufferedReader
from typing import BinaryIO, NamedTuple, cast

from agent.trust.sealing import SealedObject, seal
from hil.dispatcher import ranges
from hil.dispatcher.http_exchange import BULK_S, Exchange, refuse
from hil.dispatcher.objects import Objects
from hil.dispatcher.sealing import InputSealing, read_path
from hil.dispatcher.uploads import UploadRefusedError, Uploads

OBJECTS = "/objects/"
UPLOADS = "/uploads/"
RETRY_AFTER_S = 30


def answer_object(request: Exchange, objects: Objects) -> bool:
    """Answer a GET or HEAD of an object; False when it is about something else, or there is none."""
    name = request.path.removeprefix(OBJECTS) if request.path.startswith(OBJECTS) else ""
    sealed = None if objects.sealing is None else read_path(name)
    path = objects.path(name if sealed is None else sealed[2])
    if path is None or (sealed is None and objects.is_only_sealed(name)):
        return False
    with path.open("rb") as file:
        read = _plain(file) if sealed is None or objects.sealing is None else _sealed(file, sealed, objects.sealing)
        _send(request, read)
    return True


class _Bytes(NamedTuple):
    """What is served: how long it is, and what gives bytes `first` to `last`, both included."""

    length: int
    read: Callable[[int, int], Iterator[bytes]]


def _plain(file: BinaryIO) -> _Bytes:
    def read(first: int, last: int) -> Iterator[bytes]:
        file.seek(first)
        left = last + 1 - first
        while left and (chunk := file.read(min(64 * 1024, left))):
            left -= len(chunk)
            yield chunk

    return _Bytes(os.fstat(file.fileno()).st_size, read)


def _sealed(file: BinaryIO, named: tuple[str, int, str], sealing: InputSealing) -> _Bytes:
    """The same file as this lease's unit may have it."""
    job, epoch, sha256 = named
    what = SealedObject(job=job, epoch=epoch, sha256=sha256, length=os.fstat(file.fileno()).st_size)

    def read_plain(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return _Bytes(what.sealed_bytes, lambda first, last: seal(sealing.content_key(what), what, read_plain, first, last))


def _send(request: Exchange, body: _Bytes) -> None:
    """All of it, or the range that is asked for."""
    length = body.length
    try:
        span = ranges.wanted(request.headers.get("Range", ""), length)
    except ranges.UnsatisfiableError as error:
        told = {"Content-Range": f"bytes */{length}"}
        refuse(request, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, str(error), **told)
        return
    request.send_response(HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT)
    request.send_header("Content-Type", "application/octet-stream")
    request.send_header("Accept-Ranges", "bytes")
    if span is not None:
        request.send_header("Content-Range", span.header)
    first, size = (0, length) if span is None else (span.first, span.size)
    request.send_header("Content-Length", str(size))
    request.end_headers()
    request.give_time(BULK_S)
    if request.command != "GET" or not size:
        return
    for chunk in body.read(first, first + size - 1):
        request.check_time()
        request.wfile.write(chunk)


def answer_upload(request: Exchange, uploads: Uploads) -> bool:
    """Answer a HEAD or PUT of an upload; False when it is about something else."""
    if not request.path.startswith(UPLOADS):
        return False
    sha256 = request.path.removeprefix(UPLOADS)
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    try:
        if request.command == "HEAD":
            offset, status = uploads.offset(token, sha256), HTTPStatus.OK
        else:
            offset, status = _receive(request, uploads, token, sha256)
    except UploadRefusedError as error:
        told = {} if error.offset is None else {"Upload-Offset": str(error.offset)}
        if error.status is HTTPStatus.SERVICE_UNAVAILABLE:
            told["Retry-After"] = str(RETRY_AFTER_S)
        refuse(request, error.status, error.what, **told)
    else:
        request.send_response(status)
        request.send_header("Upload-Offset", str(offset))
        request.send_header("Content-Length", "0")
        request.end_headers()
    return True


def _receive(request: Exchange, uploads: Uploads, token: str, sha256: str) -> tuple[int, HTTPStatus]:
    """One piece; how much is here then, and the status that says whether that is all. Raises UploadRefusedError."""
    span = ranges.brought(request.headers.get("Content-Range", ""))
    length = request.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise UploadRefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
    if span is None or span.size != int(length):
        raise UploadRefusedError(HTTPStatus.BAD_REQUEST, "Content-Range is not bytes a-b/n of the body that follows")
    left = span.size
    request.give_time(BULK_S)

    def read(most: int) -> bytes:
        nonlocal left
        request.check_time()
        data = cast("BufferedReader", request.rfile).read1(min(most, left))
        left -= len(data)
        return data

    offset = uploads.receive(token, sha256, span, read)
    request.close_connection = left > 0  # what is left of the body is not the next request
    return offset, HTTPStatus.CREATED if offset == span.length else HTTPStatus.ACCEPTED
