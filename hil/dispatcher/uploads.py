"""Objects that cars bring in pieces: each piece goes on where the last one ended, and only a whole one counts.

What is brought belongs to the lease whose token came with it (`hil.dispatcher.staging`); no car can touch another's,
or learn what is there. Whoever writes an object holds a lock on it. When the last of it comes, its digest is compared
and its answers are counted, here, on a thread of the web server's, so that nobody has to do so later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

from agent.errors import DrivewayError
from hil.dispatcher.item_errors import failed_in
from hil.dispatcher.objects import SHA256, sync_folder
from hil.dispatcher.ranges import Span
from hil.dispatcher.staging import PART, WHOLE, QuotaError, Staging, answers_in
from hil.dispatcher.upload_rights import UploadLease

CHUNK_BYTES = 256 * 1024

MayUpload = Callable[[str], UploadLease | None]
"""The lease whose token this is; None: there is none that may bring anything. Raises TimeoutError, DrivewayError."""


class UploadRefusedError(Exception):
    """An upload that is not taken, with the status that says so and how much of it is here, where that is known."""

    def __init__(self, status: HTTPStatus, what: str, *, offset: int | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.offset = status, what, offset


class Uploads:
    """Use from any thread and process: files and their locks are the only state."""

    def __init__(self, staging: Staging, may_upload: MayUpload) -> None:
        self._staging, self._may_upload = staging, may_upload

    def offset(self, token: str, sha256: str) -> int:
        """How much of an object is here; raises UploadRefusedError, also while another request brings it."""
        lease = self._lease(token, sha256)
        whole = self._staging.find(lease.unit, lease.key, sha256)
        if whole is not None:
            return whole.bytes
        for path in self._staging.folder(lease.unit, lease.key).glob(f"{sha256}.*{PART}"):
            with self._locked(path) as file:
                size = os.fstat(file).st_size
                if size == _length(path):
                    _finish(file, path, sha256, lease)  # whoever wrote it was killed before it could
                return size
        return 0

    def receive(self, token: str, sha256: str, span: Span, read: Callable[[int], bytes]) -> int:
        """Take a piece, as far as it comes, and say how much of the object is here then; raises UploadRefusedError.

        `read` gives at most so many bytes of it, none at its end, and raises OSError.
        """
        lease = self._lease(token, sha256)
        if span.length > lease.most_bytes:
            raise UploadRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {lease.most_bytes} bytes")
        if self._staging.find(lease.unit, lease.key, sha256) is not None:
            return span.length
        path = self._staging.folder(lease.unit, lease.key) / f"{sha256}.{span.length}{PART}"
        try:
            if not path.exists():
                self._staging.make_room(lease, span.length)
            with self._locked(path) as file:
                size = _append(file, span, read)
                if size == span.length:
                    _finish(file, path, sha256, lease)
                return size
        except QuotaError as error:
            raise UploadRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise UploadRefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "the dispatcher's disk is full") from error
            raise UploadRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the piece could not be taken") from error

    def _lease(self, token: str, sha256: str) -> UploadLease:
        if not SHA256.fullmatch(sha256):
            raise UploadRefusedError(HTTPStatus.NOT_FOUND, "not the name of an object")
        try:
            lease = self._may_upload(token) if token else None
        except (TimeoutError, DrivewayError) as error:
            raise UploadRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher is busy") from error
        if lease is None:
            raise UploadRefusedError(HTTPStatus.FORBIDDEN, "the token is of no lease that may bring answers")
        return lease

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[int]:
        """The partial object, for one writer of all processes; raises UploadRefusedError while there is another."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(file).st_ino == path.stat().st_ino  # else it was finished or dropped meanwhile
            except (BlockingIOError, FileNotFoundError):
                mine = False
            if not mine:
                raise UploadRefusedError(
                    HTTPStatus.CONFLICT, "another request brings this object", offset=os.fstat(file).st_size
                )
            yield file
        finally:
            os.close(file)


def _finish(file: int, path: Path, sha256: str, lease: UploadLease) -> None:
    """All of it is here: whole, if it is what was named; else nothing."""
    with os.fdopen(os.dup(file), "rb") as whole:
        whole.seek(0)
        body = whole.read()
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        path.unlink(missing_ok=True)
        raise UploadRefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"what came has the SHA-256 {found}, not the one named", offset=0
        )
    os.fsync(file)
    answers = answers_in(body, lease.lengths)
    failed = failed_in(body) if answers else 0
    path.replace(path.with_name(f"{sha256}.{answers}.{failed}{WHOLE}"))
    sync_folder(path.parent)


def _append(file: int, span: Span, read: Callable[[int], bytes]) -> int:
    """Write what comes behind what is here; the size then. What was cut off on the way stays."""
    size = os.fstat(file).st_size
    if span.first != size:
        raise UploadRefusedError(HTTPStatus.CONFLICT, f"{size} bytes of it are here", offset=size)
    os.lseek(file, size, os.SEEK_SET)
    end = span.last + 1
    while size < end:
        try:
            chunk = read(min(CHUNK_BYTES, end - size))
        except OSError:  # the car is gone, or drips
            break
        if not chunk:
            break
        size += len(chunk)
        while chunk:
            chunk = chunk[os.write(file, chunk) :]
    return size


def _length(path: Path) -> int:
    """How long the object will be."""
    return int(path.name.split(".")[1])
