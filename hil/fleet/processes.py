"""The processes of a fleet's region and of its cars, and what each has used of the machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from agent.errors import FleetError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
ANSWER = TypeVar("ANSWER")


class Usage(msgspec.Struct, frozen=True):
    """What processes have used: CPU since each began, and memory now (RSS, which counts shared pages once for each)."""

    cpu_s: float = 0.0
    rss_bytes: int = 0


def usage(pids: Iterable[int]) -> Usage:
    """Of these processes and their descendants together; one that has gone counts as nothing."""
    cpu_s, rss_bytes = 0.0, 0
    for pid in pids:
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.NoSuchProcess:
                continue
            cpu_s += times.user + times.system + times.children_user + times.children_system
            rss_bytes += memory.rss
    return Usage(cpu_s, rss_bytes)


class CarProcess:
    """One process of cars (`hil.fleet.cars`): a line of JSON in, a line of JSON out."""

    def __init__(self, log: Path, assignment: msgspec.Struct) -> None:
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hil.fleet.cars"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream
            )
        self.say(assignment)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def say(self, message: msgspec.Struct) -> None:
        """Send a command; each but the first message is answered."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def hear(self, kind: type[ANSWER]) -> ANSWER:
        """The answer to the oldest command that has none yet; raises FleetError when the process has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._died()
        return msgspec.json.decode(line, type=kind)

    def hang_up(self) -> None:
        """Let the cars leave."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> None:
        """Let the cars leave, and wait for the end."""
        assert self._process.stdout is not None
        self.hang_up()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _died(self) -> Any:
        self._process.wait()
        raise FleetError(f"a process of cars died: {tail(self._log)}")


def tail(log: Path) -> str:
    """The end of a log, for an error message."""
    return log.read_text("utf-8", "replace")[-600:].strip() or f"its log {log} is empty"
