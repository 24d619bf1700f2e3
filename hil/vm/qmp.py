"""QEMU's machine protocol: one command after the other, as JSON lines on a Unix socket.

What QEMU reports on its own (a reset, a suspend) comes in between; it is kept, and found by `wait_for`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

from agent.errors import DrivewayError

COMMAND_S = 60.0
"""A snapshot of a machine that has touched all its memory takes seconds."""
KEPT_EVENTS = 1000


class Qmp:
    """One connection to a running QEMU. Raises DrivewayError when QEMU refuses, or is gone."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(COMMAND_S)
        self._waiting = b""
        self._events: deque[str] = deque(maxlen=KEPT_EVENTS)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise DrivewayError(f"QEMU does not listen on {path}: {error.strerror}") from error
        self._read(time.monotonic() + COMMAND_S)  # its greeting
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: Any) -> Any:
        """One command and what it returns."""
        request = {"execute": command, "arguments": arguments}
        deadline_s = time.monotonic() + COMMAND_S
        with self._explained(command):
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read(deadline_s)
            if "error" in answer:
                raise DrivewayError(f"QEMU refuses {command}: {answer['error'].get('desc', '')}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, line: str) -> str:
        """One line of the human monitor (snapshots are there); raises DrivewayError when it says `Error`."""
        said: str = self.do("human-monitor-command", **{"command-line": line})
        if "Error" in said or "error" in said:
            raise DrivewayError(f"QEMU cannot {line}: {said.strip()}")
        return said

    def wait_for(self, event: str, timeout_s: float) -> None:
        """Return once QEMU has reported this event, now or since the last time that it was waited for."""
        deadline_s = time.monotonic() + timeout_s
        while event not in self._events:
            self._read(deadline_s)
        self._events.remove(event)

    def forget(self) -> None:
        """What was reported until now is waited for no more; only what has been read already is known here."""
        self.do("query-status")
        self._events.clear()

    def close(self) -> None:
        """Leave; QEMU goes on."""
        self._socket.close()

    def _read(self, deadline_s: float) -> dict[str, Any]:
        """The next object; events are kept too."""
        while b"\n" not in self._waiting:
            with self._explained("answer"):
                self._socket.settimeout(max(0.01, deadline_s - time.monotonic()))
                chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise DrivewayError("QEMU has ended", hint="its last words are in qemu.log")
            self._waiting += chunk
        line, _, self._waiting = self._waiting.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if "event" in said:
            self._events.append(said["event"])
        return said

    @staticmethod
    @contextlib.contextmanager
    def _explained(what: str) -> Any:
        try:
            yield
        except TimeoutError:
            raise DrivewayError(f"QEMU did not {what} in time") from None
        except OSError as error:
            raise DrivewayError(f"QEMU is gone: {error.strerror}") from error
