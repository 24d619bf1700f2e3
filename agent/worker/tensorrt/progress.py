"""How far a build is, and the one place where it can be slowed down or ended.

TensorRT tells its progress in phases within phases, each with a number of steps, and between two steps it asks whether
to go on. There the build rests as the pace asks, and there it ends when the computer is wanted back. What it does
within a step cannot be interrupted: a builder that takes long over one is ended with its process.

The library may call from several threads; they are let through one by one, so a rest holds all of them. An exception,
which is also how a build is told to end, must not get into the library: it is raised again when the library is out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.worker.tensorrt.journal import printable

Attend = Callable[[str, int], None]
"""Called between steps with the phase's name and what is done of it, in thousandths; what it raises ends the build."""


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class Progress:
    """The open phases of one build."""

    def __init__(self, attend: Attend) -> None:
        """`attend` may sleep."""
        self._attend = attend
        self._phases: list[_Phase] = []
        self._lock = threading.Lock()
        self.error: BaseException | None = None
        """What `attend` raised. The build then ends at its next step, if it has not ended by itself."""

    def started(self, name: str, steps: int) -> None:
        """A phase begins, within the one that began before."""
        with self._lock:
            self._phases.append(_Phase(printable(name), max(int(steps), 1)))

    def stepped(self, name: str, step: int) -> bool:
        """A phase's step, counted from 0, is done; whether to go on."""
        with self._lock:
            phase = self._find(name)
            if phase is not None:
                phase.done = min(max(phase.done, int(step) + 1), phase.steps)
            return self._go_on()

    def finished(self, name: str) -> None:
        """A phase ends, and so do all within it."""
        with self._lock:
            phase = self._find(name)
            if phase is not None:
                del self._phases[self._phases.index(phase) :]

    def _go_on(self) -> bool:
        if self.error is None:
            try:
                self._attend(*self._where())
            except BaseException as error:  # noqa: BLE001 - C++ is above us: raised again by `builder`
                self.error = error
        return self.error is None

    def _where(self) -> tuple[str, int]:
        """The open phase with the most steps, which says most, and what is done of it."""
        if not self._phases:
            return "Building", 0
        phase = max(self._phases, key=lambda one: one.steps)
        return phase.name, phase.done * 1000 // phase.steps

    def _find(self, name: str) -> _Phase | None:
        """The innermost open phase of that name."""
        shown = printable(name)
        return next((phase for phase in reversed(self._phases) if phase.name == shown), None)


def monitor(trt: Any, progress: Progress) -> Any:
    """An IProgressMonitor that tells `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the flavour that was imported
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            progress.started(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.stepped(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finished(phase_name)

    return Monitor()
