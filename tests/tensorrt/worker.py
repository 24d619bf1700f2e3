"""The daemon's end of a worker in build mode, kept simple: a blocking socket, and everything that came."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from agent import wire
from tests.tensorrt.bindings import ROOT

PATIENCE_S = 60.0
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
Message = TypeVar("Message")


class Worker:
    """One process; what it said is in `said`, each with the second in which it came."""

    def __init__(
        self,
        bindings: Path | None,
        package: Path | None,
        *,
        capability: str = "8.6",
        stack_kib: int = 8192,
        data_mb: int = 0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._socket, theirs = socket.socketpair()
        self.said: list[tuple[float, wire.WorkerMessage]] = []
        self.memories: list[int] = []
        self._decoder = wire.worker_messages()
        script = Path(__file__).parent / "build_worker.py"
        paths = [str(ROOT), *([] if bindings is None else [str(bindings)])]
        reads = [part for one in (bindings, package) if one is not None for part in ("--read", str(one))]
        given = environment or {}
        variables = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"} | given
        variables["PYTHONPATH"] = os.pathsep.join([*paths, *given.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(":")
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    script,
                    capability,
                    str(stack_kib),
                    str(data_mb),
                    *reads,
                    "--accelerator",
                    "--fd",
                    str(theirs.fileno()),
                ],
                pass_fds=(theirs.fileno(),),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._socket.settimeout(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self._socket.close()
        for descriptor in self.memories:
            os.close(descriptor)

    def tell(self, message: wire.DaemonMessage, memory: bytes = b"") -> None:
        if not memory:
            self._socket.sendall(wire.encode(message))
            return
        descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(descriptor, memory)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        socket.send_fds(self._socket, [wire.encode(message)], [descriptor])
        os.close(descriptor)

    def hear(self, kind: type[Message] | tuple[type[Message], ...]) -> Message:
        """The next message of this kind; everything before it is kept too. Fails when the worker ends before."""
        heard = len(self.said)
        while True:
            for _, message in self.said[heard:]:
                if isinstance(message, kind):
                    return message
            heard = len(self.said)
            data, descriptors, _, _ = socket.recv_fds(self._socket, 65536, 4, socket.MSG_CMSG_CLOEXEC)
            self.memories += descriptors
            said = [message for _, message in self.said]
            assert data, f"the worker ended: {said}\n{self.process.stderr and self.process.stderr.read()[-3000:]}"
            self.said += [(time.monotonic(), message) for message in self._decoder.feed(data)]

    def all_of(self, kind: type[Message]) -> list[Message]:
        return [message for _, message in self.said if isinstance(message, kind)]

    def processor_s(self) -> float:
        """The processor time that the process has used so far, also when it has just ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status(self) -> int:
        """How the process ended by itself."""
        return self.process.wait(PATIENCE_S)

    def memory(self, place: int) -> bytes:
        """What came in a sealed memfd; fails when it could still be changed."""
        descriptor = self.memories[place]
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == SEALS
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
