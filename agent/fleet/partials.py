"""Objects that have arrived in part, kept on disk so that the rest can be fetched later, also after a restart.

A file is `{sha256}.part`, holds the object from its first byte on, and is believed in nothing: the digest of the whole
decides, so a tail that a power cut spoiled costs another fetch and no more. What arrives goes into memory in any case
(`agent.sealed`; a worker gets it from there), piece by piece, and its digest is computed meanwhile; the disk is only
for what a pause would lose. So a disk without room costs resumability alone: below the reserve (`agent.disk`) nothing
is written, and that is counted. Files are few and their bytes bounded: the oldest is dropped for the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from agent.disk import RESERVE_BYTES, has_room
from agent.fleet.channel import Cut
from agent.log import logger
from agent.sealed import InputMemory
from agent.trust.sealing import Opener, SealError

Opening = Callable[[Callable[[memoryview], None]], Opener]
"""Begins to open a sealed object anew; what it opens goes to the function."""

MOST_FILES = 4
MOST_BYTES = 128 * 1024 * 1024
PIECE_BYTES = 256 * 1024
"""So much is read from a file at a time: between two pieces a pause is noticed."""
WORTH_BYTES = 1024 * 1024
"""An object shorter than this is fetched again rather than written down."""
SUFFIX = ".part"
NAME = re.compile(r"[0-9a-f]{64}")
TURN_S = 0.1


class Partials:
    """A folder of partial objects. One is open at a time; from any thread."""

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int = MOST_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        worth_bytes: int = WORTH_BYTES,
    ) -> None:
        self._folder, self._most_bytes, self._reserve_bytes = folder, most_bytes, reserve_bytes
        self.worth_bytes = worth_bytes
        self._turn = threading.Lock()
        self._complained = False
        self.unwritten = 0
        """How many objects the disk had no room for, or refused."""

    @contextlib.contextmanager
    def open(self, sha256: str, length: int, cut: Cut, opening: Opening | None = None) -> Iterator[Partial]:
        """The object as far as it is here. It is kept for the next time unless it is dropped.

        With `opening` it is sealed: `length` is that of the sealed bytes, and `sha256` their name.

        Raises PausedError when cut, also while another transfer, which is on its way out, still has its file; and
        WorkerError when there is no memory for it.
        """
        if not NAME.fullmatch(sha256):
            raise ValueError(f"{sha256!r} names no object")
        while not self._turn.acquire(timeout=TURN_S):
            cut.check()
        try:
            partial = Partial(self, self._folder / f"{sha256}{SUFFIX}", length, opening)
            try:
                partial.take_up(cut)
                yield partial
            finally:
                partial.close()
        finally:
            self._turn.release()

    def note(self, problem: str) -> None:
        """An object was kept ("") or was not: the first that was not is told of, and the first that is again."""
        self.unwritten += bool(problem)
        if problem and not self._complained:
            logger().warning("transfer_not_kept", folder=str(self._folder), error=problem)
        elif self._complained and not problem:
            logger().info("transfers_kept_again", folder=str(self._folder))
        self._complained = bool(problem)

    def has_room(self, more: int) -> bool:
        """Whether the disk takes so many bytes without touching the reserve."""
        return has_room(self._folder, more, self._reserve_bytes)

    def make_room(self, path: Path, length: int) -> None:
        """Make the folder, and drop the oldest other files until this one fits; raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        others = sorted((one for one in self._folder.iterdir() if one != path), key=lambda one: one.stat().st_mtime_ns)
        kept = sum(one.stat().st_size for one in others)
        while others and (len(others) >= MOST_FILES or kept + length > self._most_bytes):
            oldest = others.pop(0)
            kept -= oldest.stat().st_size
            oldest.unlink()


class Partial:
    """One object on its way: `received` bytes have arrived, of which an earlier transfer left `resumed`.

    Of a sealed one the disk has the sealed bytes, and memory what they are; what does not open raises SealError.
    """

    def __init__(self, folder: Partials, path: Path, length: int, opening: Opening | None = None) -> None:
        self._folder, self._path, self._length = folder, path, length
        self._file: BinaryIO | None = None
        self._memory: InputMemory | None = InputMemory()
        self._digest = hashlib.sha256()
        self._opening = opening
        self._opener = None if opening is None else opening(self._take)
        self.received = self.resumed = 0

    def take_up(self, cut: Cut) -> None:
        """What an earlier transfer left on the disk; raises PausedError when cut, and WorkerError."""
        cut.check()
        if self._length < self._folder.worth_bytes:
            return
        try:
            self._folder.make_room(self._path, self._length)
            self._file = self._path.open("a+b", buffering=0)
            self._file.seek(0)
            while self.received <= self._length and (piece := self._file.read(PIECE_BYTES)):
                self._keep(piece)
                cut.check()
        except OSError as error:
            self._give_up(str(error))
        except SealError:  # spoiled on the disk, or it never opened
            self.restart()
        self.resumed = self.received
        if self.resumed > self._length:  # not of this object: its digest is another's
            self.restart()

    @property
    def sha256(self) -> str:
        """The digest of what is here; of a sealed object, of what is in it."""
        return self._digest.hexdigest()

    def add(self, data: bytes) -> None:
        """So much more has arrived; raises WorkerError when there is no memory for it."""
        self._keep(data)
        if self._file is None:
            return
        try:
            if not self._folder.has_room(len(data)) or self._file.write(data) != len(data):
                self._give_up("the disk is nearly full")
        except OSError as error:
            self._give_up(str(error))

    def restart(self) -> None:
        """Forget what has arrived."""
        if self._memory is not None:
            self._memory.restart()
        self._digest = hashlib.sha256()
        if self._opener is not None and self._opening is not None:
            self._opener.close()
            self._opener = self._opening(self._take)
        self.received = self.resumed = 0
        if self._file is not None:
            try:
                self._file.truncate(0)
            except OSError as error:
                self._give_up(str(error))

    def whole(self) -> InputMemory:
        """All of it is here and right: sealed, and from now on the caller's to close. Its file is dropped."""
        assert self._memory is not None
        if self._opener is not None:
            self._opener.finish()
        self._memory.seal()
        memory, self._memory = self._memory, None
        self.drop()
        return memory

    def drop(self) -> None:
        """Its file is not needed any more."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep on disk what is there, and nothing in memory."""
        received, memory = self.received, self._memory
        self._memory = None
        if self._opener is not None:
            self._opener.close()
        if memory is not None:
            memory.close()
        file, self._file = self._file, None
        if file is None:
            return
        try:
            os.fsync(file.fileno())
            self._folder.note("")
        except OSError as error:
            self._folder.note(str(error))
        file.close()
        if not received:
            self.drop()

    def _keep(self, data: bytes) -> None:
        if self._opener is None:
            self._take(data)
        else:
            self._opener.add(data)
        self.received += len(data)

    def _take(self, data: bytes | memoryview) -> None:
        assert self._memory is not None
        self._memory.add(data)
        self._digest.update(data)

    def _give_up(self, problem: str) -> None:
        """The disk refuses, or has no room: give it back what is there, and go on in memory."""
        self._folder.note(problem)
        self.drop()
