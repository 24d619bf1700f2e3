"""Objects that cars bring in pieces: each piece goes on where the last one ended, and only a whole one is an object.

A partial object is `uploads/{sha256}.{length}.{owner}.upload` in the objects' folder, where the owner is a digest of
the lease's token: no car can touch another's, and several dispatchers may share the folder. Whoever writes one holds a
lock on it; it becomes an object, under its digest and by a rename, once that digest was found right. What a car never
finishes expires; a token has few partial objects at a time, and all together are bounded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

from agent.errors import DrivewayError
from hil.dispatcher.objects import SHA256, Objects
from hil.dispatcher.ranges import Span

CHUNK_BYTES = 256 * 1024
EXPIRES_S = 24 * 3600.0
MOST_OF_ONE = 4
MOST_FILES = 1024
MOST_BYTES = 4 * 1024**3
SUFFIX = ".upload"

MayUpload = Callable[[str], int | None]
"""How large an object may be that is brought with this token; None: none may. Raises TimeoutError, DrivewayError."""


class UploadRefusedError(Exception):
    """An upload that is not taken, with the status that says so and how much of it is here, where that is known."""

    def __init__(self, status: HTTPStatus, what: str, *, offset: int | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.offset = status, what, offset


class Uploads:
    """Use from any thread and process: files and their locks are the only state."""

    def __init__(self, objects: Objects, may_upload: MayUpload, now_s: Callable[[], float] = time.time) -> None:
        self._objects, self._may_upload, self._now_s = objects, may_upload, now_s
        self._folder = objects.folder / "uploads"
        self._folder.mkdir(parents=True, exist_ok=True)

    def offset(self, token: str, sha256: str) -> int:
        """How much of an object is here; raises UploadRefusedError, also while another request brings it."""
        self._most_bytes(token, sha256)
        if (whole := self._objects.path(sha256)) is not None:
            return whole.stat().st_size
        for path in self._folder.glob(f"{sha256}.*.{_owner(token)}{SUFFIX}"):
            with self._locked(path) as file:
                size = os.fstat(file).st_size
                if size == _length(path):
                    self._finish(file, path, sha256)  # whoever wrote it was killed before it could
                return size
        return 0

    def receive(self, token: str, sha256: str, span: Span, read: Callable[[int], bytes]) -> int:
        """Take a piece, as far as it comes, and say how much of the object is here then; raises UploadRefusedError.

        `read` gives at most so many bytes of it, none at its end, and raises OSError.
        """
        most_bytes = self._most_bytes(token, sha256)
        if span.length > most_bytes:
            raise UploadRefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most_bytes} bytes")
        if self._objects.path(sha256) is not None:
            return span.length
        path = self._folder / f"{sha256}.{span.length}.{_owner(token)}{SUFFIX}"
        try:
            if not path.exists():
                self._make_room(span.length, _owner(token))
            with self._locked(path) as file:
                size = _append(file, span, read)
                if size == span.length:
                    self._finish(file, path, sha256)
                return size
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise UploadRefusedError(HTTPStatus.INSUFFICIENT_STORAGE, "the dispatcher's disk is full") from error
            raise UploadRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the piece could not be taken") from error

    def _most_bytes(self, token: str, sha256: str) -> int:
        if not SHA256.fullmatch(sha256):
            raise UploadRefusedError(HTTPStatus.NOT_FOUND, "not the name of an object")
        try:
            most_bytes = self._may_upload(token) if token else None
        except (TimeoutError, DrivewayError) as error:
            raise UploadRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the dispatcher is busy") from error
        if most_bytes is None:
            raise UploadRefusedError(HTTPStatus.FORBIDDEN, "the token is of no lease that may bring answers")
        return most_bytes

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

    def _finish(self, file: int, path: Path, sha256: str) -> None:
        """All of it is here: an object, if it is the one that was named; else nothing."""
        with os.fdopen(os.dup(file), "rb") as whole:
            whole.seek(0)
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if found != sha256:
            path.unlink(missing_ok=True)
            raise UploadRefusedError(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"what came has the SHA-256 {found}, not the one named", offset=0
            )
        os.fsync(file)
        self._objects.adopt(path, sha256)

    def _make_room(self, length: int, owner: str) -> None:
        """Drop what has expired, and the token's oldest beyond a few; raises UploadRefusedError when all is full."""
        kept: list[tuple[float, Path, int]] = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                if self._now_s() - seen.st_mtime > EXPIRES_S:
                    path.unlink(missing_ok=True)
                else:
                    kept.append((seen.st_mtime, path, _length(path)))
        own = sorted(one for one in kept if one[1].name.endswith(f".{owner}{SUFFIX}"))
        for one in own[: max(0, len(own) - MOST_OF_ONE + 1)]:
            one[1].unlink(missing_ok=True)
            kept.remove(one)
        if len(kept) >= MOST_FILES or sum(one[2] for one in kept) + length > MOST_BYTES:
            raise UploadRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too much is being brought at once; later")


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


def _owner(token: str) -> str:
    """Whose it is, as a file's name may say it."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def _length(path: Path) -> int:
    """How long the object will be."""
    return int(path.name.split(".")[1])
