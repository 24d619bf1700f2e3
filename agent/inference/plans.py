"""The plan cache: what an engine made of a model for this computer, kept on the disk and believed only if it is ours.

A plan is executable code that no parser can judge, so the only question is who wrote it, for what. A file is a header
and the plan:

    magic (8) | name (32) | length (8, big-endian) | SHA-256 of the plan (32) | HMAC-SHA256 of all that (32) | plan

The HMAC's key is derived from the device's own secret (`agent.trust.device_secret`), so a file of another car, or one
that somebody put here, is none of ours. The name is the SHA-256 over everything that a plan depends on (`plan_name`):
the model, the package's shapes and operations, the engine and its exact version, driver, device, builder's settings.
So a plan of before an update is simply not found. What is found and is not right in every bit is deleted, told of once
in the log, and built anew; nothing unchecked ever leaves this module: the bytes that are hashed are those in the sealed
memory that the worker gets, whatever happens to the file meanwhile.

A file is written under another name, synced and renamed, so a power cut leaves it whole or not at all. The folder is
bounded: the plans used longest ago make room, though never all of them for one (a file of more than half the folder is
refused), and the reserve of the disk (`agent.disk`) is not touched. A package's timing cache, which makes its next
build on the same computer quicker, is kept in the same way.

Everything here blocks (plans are tens of megabytes): call it from a thread. It may be called from several.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from agent.disk import RESERVE_BYTES, has_room
from agent.errors import StoreError, TrustError
from agent.log import logger
from agent.package import Bucket, Package, PipelineSpec, may_use_tf32
from agent.sealed import InputMemory
from agent.trust.device_secret import DeviceSecret
from agent.wire import BUILDER_SETTINGS, MAX_PLAN_BYTES, MAX_TIMING_BYTES, Platform

USE = "driveway/plan-cache/1"
"""What the device's secret is used for here."""
KEY_FILE = "device.secret"
MAGIC = b"dwplan1\n"
HEADER_BYTES = len(MAGIC) + 32 + 8 + 32 + 32
PIECE_BYTES = 256 * 1024
MAX_BYTES = 4 * 1024**3
ABANDONED_S = 3600.0
"""A file that was begun so long ago will not be finished any more."""
NAME = re.compile(r"[0-9a-f]{64}")

Kind = Literal["plan", "timing"]
MOST_BYTES: dict[Kind, int] = {"plan": MAX_PLAN_BYTES, "timing": MAX_TIMING_BYTES}


class PlanOf(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a plan depends on."""

    kind: Literal["driveway plan 1"] = "driveway plan 1"
    model_sha256: str
    input: str
    pipeline: PipelineSpec
    buckets: tuple[Bucket, ...]
    tf32: bool
    platform: Platform
    memory_mb: int
    """What the builder may use: it chooses by that."""
    builder_settings: int


class TimingOf(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a timing cache depends on, and whose it is: none learns from another's what that runs."""

    kind: Literal["driveway timing 2"] = "driveway timing 2"
    package_sha256: str
    platform: Platform


def plan_name(package: Package, platform: Platform, memory_mb: int) -> str:
    """The name of this package's plan on this platform: SHA-256 of everything that it depends on, in hex."""
    manifest = package.manifest
    return _name(
        PlanOf(
            model_sha256=manifest.files[manifest.model],
            input=manifest.input,
            pipeline=manifest.pipeline,
            buckets=manifest.buckets,
            tf32=may_use_tf32(manifest),
            platform=platform,
            memory_mb=memory_mb,
            builder_settings=BUILDER_SETTINGS,
        )
    )


def timing_name(package: Package, platform: Platform) -> str:
    """The name of this package's timing cache on this platform."""
    return _name(TimingOf(package_sha256=package.package_sha256, platform=platform))


def _name(material: msgspec.Struct) -> str:
    """SHA-256 over the one JSON form of the material: sorted keys, no blanks."""
    return hashlib.sha256(msgspec.json.encode(material, order="sorted")).hexdigest()


def open_cache(folder: Path, *, max_bytes: int = MAX_BYTES) -> PlanCache:
    """The cache in a folder of this device's or this user's own, whose secret is made now where there is none.

    Raises TrustError when the secret cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TrustError(f"no place for the device's secret: {folder}: {error.strerror}") from error
    secret = DeviceSecret.open_or_create(folder / KEY_FILE)
    return PlanCache(folder / "plans", secret, max_bytes=max_bytes)


@dataclass(frozen=True)
class KeptPlan:
    """A plan from the cache, in sealed memory, with its SHA-256 (hex), under which statements name it. To be closed."""

    memory: InputMemory
    sha256: str

    def close(self) -> None:
        """Give the memory back; may be called again."""
        self.memory.close()


class DamagedError(Exception):
    """A file that is not, in every bit, what was written here; the text says how it was found out."""


class PlanCache:
    """A folder of plans and timing caches; made when the first is written."""

    def __init__(
        self,
        folder: Path,
        secret: DeviceSecret,
        *,
        max_bytes: int = MAX_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._folder, self._key = folder, secret.key_for(USE)
        self._max_bytes, self._reserve_bytes = max_bytes, reserve_bytes
        self._turn = threading.Lock()

    def holds(self, name: str, kind: Kind = "plan") -> bool:
        """Whether there is such a file, with a header of ours and as long as that says; damage is found on reading."""
        path = self._path(name, kind)
        try:
            with _open(path) as file:
                self._length(file, name)
        except FileNotFoundError:
            return False
        except (OSError, DamagedError) as error:
            self._drop(path, str(error))
            return False
        return True

    def read(self, name: str, kind: Kind = "plan") -> KeptPlan | None:
        """The plan, the caller's to close; None where there is none that may be believed.

        Raises WorkerError when there is no memory for it.
        """
        path = self._path(name, kind)
        try:
            with _open(path) as file:
                plan = self._checked(file, name)
        except FileNotFoundError:
            return None
        except (OSError, DamagedError) as error:
            self._drop(path, str(error))
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: others make room first
        return plan

    def write(self, name: str, memory: InputMemory, kind: Kind = "plan") -> None:
        """Keep a plan; raises StoreError when the disk does not take it, or the cache cannot hold so much."""
        path = self._path(name, kind)
        if memory.length > MOST_BYTES[kind]:
            raise StoreError(f"a {kind} of {memory.length} bytes is more than the {MOST_BYTES[kind]} there may be")
        digest = hashlib.sha256()
        for piece in memory.pieces():
            digest.update(piece)
        header = self._header(name, memory.length, digest.digest())
        size = len(header) + memory.length
        with self._turn:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._make_room(path, size)
                _write_whole(path, header, memory)
            except OSError as error:
                raise StoreError(f"the {kind} {name[:16]}… cannot be kept: {error.strerror or error}") from error

    def drop(self, name: str, why: str, kind: Kind = "plan") -> None:
        """A plan that turned out to be of no use: it is deleted."""
        self._drop(self._path(name, kind), why)

    def _path(self, name: str, kind: Kind) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no plan")
        return self._folder / f"{name}.{kind}"

    # --- what is believed ---------------------------------------------------------------------------------------

    def _header(self, name: str, length: int, digest: bytes) -> bytes:
        told = MAGIC + bytes.fromhex(name) + length.to_bytes(8, "big") + digest
        return told + hmac.digest(self._key, told, "sha256")

    def _length(self, file: BinaryIO, name: str) -> tuple[int, bytes]:
        """The plan's length and digest, as a header of ours for this name says; raises DamagedError."""
        header = file.read(HEADER_BYTES)
        if len(header) != HEADER_BYTES:
            raise DamagedError("it is cut short")
        length, digest = int.from_bytes(header[40:48], "big"), header[48:80]
        if not hmac.compare_digest(header, self._header(name, length, digest)):
            raise DamagedError("its header is not of this device, for this name")
        size = os.fstat(file.fileno()).st_size
        if length > MAX_PLAN_BYTES or size != HEADER_BYTES + length:
            raise DamagedError(f"it has {size} bytes, not {HEADER_BYTES + length}")
        return length, digest

    def _checked(self, file: BinaryIO, name: str) -> KeptPlan:
        """The plan, hashed as it is in the memory that is handed on; raises DamagedError or WorkerError."""
        length, expected = self._length(file, name)
        memory, digest = InputMemory(), hashlib.sha256()
        try:
            while memory.length < length and (piece := file.read(min(PIECE_BYTES, length - memory.length))):
                memory.add(piece)
            memory.seal()
            for piece in memory.pieces():
                digest.update(piece)
            if memory.length != length or not hmac.compare_digest(digest.digest(), expected):
                raise DamagedError("its content is not what was written")  # noqa: TRY301 - one way out for all
        except BaseException:
            memory.close()
            raise
        return KeptPlan(memory, expected.hex())

    def _drop(self, path: Path, why: str) -> None:
        """Delete a file; it is told of here, once, since it is gone then."""
        logger().warning("plan_dropped", file=path.name, why=why)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    # --- room ---------------------------------------------------------------------------------------------------

    def _make_room(self, path: Path, size: int) -> None:
        """Delete what was used longest ago until this fits, and what an interrupted write left; raises OSError."""
        others: list[tuple[int, int, Path]] = []
        for one in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = one.lstat()
                if one.name.startswith("."):
                    if status.st_mtime < time.time() - ABANDONED_S:
                        one.unlink()
                elif one != path:
                    others.append((status.st_mtime_ns, status.st_size, one))
        others.sort()
        kept = sum(one[1] for one in others)
        if size > self._max_bytes // 2:
            raise OSError(f"{size} bytes are more than half of what the cache may hold ({self._max_bytes})")
        while kept + size > self._max_bytes or not has_room(self._folder, size, self._reserve_bytes):
            if not others:
                raise OSError("the disk is nearly full")
            _, freed, oldest = others.pop(0)
            oldest.unlink(missing_ok=True)
            kept -= freed
            logger().info("plan_evicted", file=oldest.name, bytes=freed)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A plain file, never through a link; raises OSError, or DamagedError for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedError("it is not a plain file")
        yield file


def _write_whole(path: Path, header: bytes, memory: InputMemory) -> None:
    """The file as it is to be, or none at all; raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            for piece in memory.pieces():
                file.write(piece)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
