"""Commands in the vehicle, from the rig: the other end of `guest/shell.py`, on a port that needs no network.

A machine that was restored from a snapshot, or stopped in the middle, may still answer what somebody else asked: only
the answer with our number counts.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import DrivewayError

PIECE_BYTES = 192 * 1024
"""Of a file that is sent: a line of a quarter of a megabyte."""
SLACK_S = 30.0
"""The guest ends what takes too long; beyond that it gets so much time to say so."""


@dataclass(frozen=True)
class Done:
    """What came of a command; `status` is its exit status, -1 where it could not be begun."""

    status: int
    out: str
    err: str


class GuestShell:
    """The vehicle's shell; connects anew for each command, since power cuts and snapshots break connections."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count(random.getrandbits(40))

    def run(self, command: str, *, timeout_s: float = 60.0) -> Done:
        """One command by the guest's /bin/sh, as root. Raises DrivewayError when the guest does not answer."""
        answer = self._ask({"sh": command, "timeout_s": timeout_s}, timeout_s + SLACK_S)
        return Done(status=answer["rc"], out=answer["out"], err=answer["err"])

    def check(self, command: str, *, timeout_s: float = 60.0) -> str:
        """The same, and what it printed; raises DrivewayError, with what it complained of, when it failed."""
        done = self.run(command, timeout_s=timeout_s)
        if done.status:
            said = (done.err.strip() or done.out.strip() or "it said nothing")[-2000:]
            raise DrivewayError(f"in the vehicle, {command!r} failed with status {done.status}: {said}")
        return done.out

    def put(self, content: bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file there, in pieces."""
        for start in range(0, max(1, len(content)), PIECE_BYTES):
            data = base64.b64encode(content[start : start + PIECE_BYTES]).decode()
            request = {"put": path, "data": data, "append": start > 0, "mode": mode}
            answer = self._ask(request, 60.0 + SLACK_S)
            if answer["rc"]:
                raise DrivewayError(f"{path} was not written in the vehicle: {answer['err']}")

    def get(self, path: str) -> bytes:
        """A file of the guest."""
        answer = self._ask({"get": path}, 60.0 + SLACK_S)
        if answer["rc"]:
            raise DrivewayError(f"{path} cannot be read in the vehicle: {answer['err']}")
        return base64.b64decode(answer["out"])

    def ask(self, path: str, line: str, *, timeout_s: float = 60.0) -> str:
        """A line to whoever listens on a Unix socket of the guest, and the line of its answer."""
        answer = self._ask({"unix": path, "line": line, "timeout_s": timeout_s}, timeout_s + SLACK_S)
        if answer["rc"]:
            raise DrivewayError(f"nobody answers on {path} in the vehicle: {answer['err']}")
        out: str = answer["out"]
        return out

    def wait_until_it_answers(self, timeout_s: float) -> None:
        """Return once the guest does what it is told; raises DrivewayError with the last reason when it does not."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                self._ask({"sh": ":", "timeout_s": 10}, min(2.0, max(0.1, left_s)))
            except DrivewayError as error:
                if time.monotonic() > deadline_s:
                    raise DrivewayError(f"the vehicle did not come up in {timeout_s:.0f} s: {error}") from error
                time.sleep(0.1)
            else:
                return

    def _ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        number, deadline_s, waiting = next(self._numbers), time.monotonic() + timeout_s, b""
        line = json.dumps({"id": number, **request}).encode()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(str(self._path))
                connection.sendall(b"\n" + line + b"\n")  # ends half a line that another connection left
                while True:
                    connection.settimeout(max(0.01, deadline_s - time.monotonic()))
                    chunk = connection.recv(1 << 18)
                    if not chunk:
                        raise DrivewayError("the vehicle's shell hung up", hint="is QEMU still running?")
                    *lines, waiting = (waiting + chunk).split(b"\n")
                    for answer in filter(None, map(_decoded, lines)):
                        if answer.get("id") == number:
                            return answer
        except TimeoutError:
            raise DrivewayError(f"the vehicle did not answer in {timeout_s:.0f} s") from None
        except OSError as error:
            raise DrivewayError(f"the vehicle's shell cannot be reached: {error.strerror}") from error


def _decoded(line: bytes) -> dict[str, Any]:
    """An answer; nothing, where the line is the end of one that was broken off."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
