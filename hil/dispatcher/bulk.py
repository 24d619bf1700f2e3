"""Bulk data over HTTP: objects out, whole or from anywhere on, and answers in, whole or piece by piece.

    GET, HEAD /objects/{sha256}    200, or with `Range: bytes=…` 206, or 416 behind its end; 404
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
from http import HTTPStatus
from io import BufferedReader
from typing import cast

from hil.dispatcher import ranges
from hil.dispatcher.http_exchange import BULK_S, Exchange, refuse
from hil.dispatcher.objects import Objects
from hil.dispatcher.uploads import UploadRefusedError, Uploads

OBJECTS = "/objects/"
UPLOADS = "/uploads/"
RETRY_AFTER_S = 30


def answer_object(request: Exchange, objects: Objects) -> bool:
    """Answer a GET or HEAD of an object; False when it is about something else, or there is none."""
    path = objects.path(request.path.removeprefix(OBJECTS)) if request.path.startswith(OBJECTS) else None
    if path is None:
        return False
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        try:
            span = ranges.wanted(request.headers.get("Range", ""), length)
        except ranges.UnsatisfiableError as error:
            refuse(
                request,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                str(error),
                **{"Content-Range": f"bytes */{length}"},
            )
            return True
        request.send_response(HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Accept-Ranges", "bytes")
        if span is not None:
            request.send_header("Content-Range", span.header)
            file.seek(span.first)
        left = length if span is None else span.size
        request.send_header("Content-Length", str(left))
        request.end_headers()
        request.give_time(BULK_S)
        while request.command == "GET" and left and (chunk := file.read(min(64 * 1024, left))):
            request.check_time()
            request.wfile.write(chunk)
            left -= len(chunk)
    return True


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
