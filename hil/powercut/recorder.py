"""The recorder (`recorder.c`): built by the C compiler that is here, preloaded into a process, and its log read.

A log that does not say all that was done to the files would prove nothing, so whoever reads one holds its end against
the folder (`hil.powercut.disk`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from agent.errors import DrivewayError

SOURCE = Path(__file__).with_name("recorder.c")
BUILDS = Path(__file__).parent.parent.parent / "build" / "powercut"
FOLDER, LOG, STOP = "DRIVEWAY_POWERCUT_FOLDER", "DRIVEWAY_POWERCUT_LOG", "DRIVEWAY_POWERCUT_STOP"
HEAD = struct.Struct("<cHqI")


class Operation(msgspec.Struct, frozen=True):
    """One operation on a file; `kind` is a letter of `recorder.c`. A rename's `data` is the new name."""

    kind: str
    name: str
    offset: int
    data: bytes


class Fault(msgspec.Struct, frozen=True):
    """The `nth` call of a `kind` (W, S, T or O, see `recorder.c`) fails with `error`, and `times` in a row."""

    kind: str
    nth: int
    error: int
    times: int = 1


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("gcc") or shutil.which("cc")


def build() -> Path:
    """The shared object, made anew when its source has changed; raises DrivewayError without a compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    made = BUILDS / f"recorder-{digest}.so"
    if made.exists():
        return made
    found = compiler()
    if found is None:
        raise DrivewayError("the recorder of file operations cannot be built: there is no C compiler", hint="apt: gcc")
    BUILDS.mkdir(parents=True, exist_ok=True)
    part = made.with_suffix(f".{os.getpid()}")
    command = [
        *(found, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"),
        str(part),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DrivewayError(f"the recorder of file operations cannot be built: {done.stderr.strip()}")
    part.rename(made)
    return made


def run(module: str, asked: msgspec.Struct, folder: Path, log: Path) -> bytes:
    """Run `python -m module` on `folder` under the recorder, with what is asked as its argument; its standard output.

    Raises DrivewayError with its last words when it fails.
    """
    command = [sys.executable, "-m", module, msgspec.json.encode(asked).decode()]
    told = {"LD_PRELOAD": str(build()), FOLDER: f"{folder.absolute()}/", LOG: str(log.absolute())}
    root = SOURCE.parent.parent.parent
    done = subprocess.run(command, capture_output=True, env=os.environ | told, cwd=root, check=False)
    if done.returncode:
        raise DrivewayError(f"{module} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def operations(log: Path, folder: Path) -> list[Operation]:
    """What was done to the files of `folder`, in its order, by their names there ("" is the folder itself)."""
    content, found, at = log.read_bytes(), list[Operation](), 0
    above = f"{folder.absolute()}/"
    while at < len(content):
        kind, name_bytes, offset, data_bytes = HEAD.unpack_from(content, at)
        at += HEAD.size
        name = content[at : at + name_bytes].decode()
        data = content[at + name_bytes : at + name_bytes + data_bytes]
        if kind == b"R":
            data = data.decode().removeprefix(above).encode()
        found.append(Operation(kind.decode(), f"{name}/".removeprefix(above).rstrip("/"), offset, data))
        at += name_bytes + data_bytes
    return found


class Control:
    """The recorder in this process; raises AttributeError where it is not preloaded."""

    def __init__(self) -> None:
        functions = ctypes.CDLL(None)
        self._fail, self._calls, self._note = (
            functions.powercut_fail,
            functions.powercut_calls,
            functions.powercut_note,
        )
        self._fail.argtypes = [ctypes.c_char, ctypes.c_long, ctypes.c_int, ctypes.c_long]
        self._calls.argtypes, self._calls.restype = [ctypes.c_char], ctypes.c_long
        self._note.argtypes = [ctypes.c_char_p, ctypes.c_uint32]

    def fail(self, fault: Fault) -> None:
        """Let calls fail from now on; it replaces what was asked for before."""
        self._fail(fault.kind.encode(), fault.nth, fault.error, fault.times)

    def heal(self) -> None:
        """Nothing fails any more, and calls are counted from here."""
        self._fail(b"W", 0, 0, 0)

    def calls(self, kind: str) -> int:
        """How many calls of a kind there were since `fail` or `heal`."""
        return int(self._calls(kind.encode()))

    def note(self, data: bytes) -> None:
        """Write something down between two operations."""
        self._note(data, len(data))
