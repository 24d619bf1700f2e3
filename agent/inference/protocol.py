"""What a worker owes: every message of it is held against the orders that it was given. Pure.

Hello comes first, and once. Survey, Build and Load are each answered once; Survey and Build, and every refusal, are the
worker's last word. Runs are answered in their order, one answer each, and for the items that were asked for. Idle
answers Stop, once, and nothing comes after it. Beat may come at any time before. Whatever else a worker says, it was
not asked for, and a worker that answers what nobody asked is not believed in anything: `heard` raises WireError, and
the launcher kills it.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from agent import wire
from agent.wire import WireError


class Protocol:
    """The orders that one worker has not answered, and how far it has come."""

    def __init__(self) -> None:
        self._is_up = False
        self._order: wire.Survey | wire.Build | wire.Load | None = None
        self._runs: deque[wire.Run] = deque()
        self._stopped = self._last_word = self._idle = False

    @property
    def is_loading(self) -> bool:
        """Whether it has said Hello, and Load is what it has to answer."""
        return self._is_up and isinstance(self._order, wire.Load)

    def sent(self, message: wire.DaemonMessage) -> None:
        """The worker was given this."""
        match message:
            case wire.Survey() | wire.Build() | wire.Load():
                self._order = message
            case wire.Run():
                self._runs.append(message)
            case wire.Stop():
                self._stopped = True
            case wire.Input() | wire.Forget() | wire.Pace() | wire.Require():
                pass
            case _:
                assert_never(message)

    def heard(self, message: wire.WorkerMessage) -> None:
        """The worker says this; raises WireError where it does not owe it."""
        if not self._is_owed(message):
            raise WireError(f"it says {type(message).__name__}, which nobody asked for")
        match message:
            case wire.Hello():
                self._is_up = True
            case wire.Refused() | wire.Surveyed() | wire.Built():
                self._order, self._last_word = None, True
            case wire.Loaded():
                self._order = None
            case wire.Progress():
                _check_progress(self._runs[0], message)
            case wire.SliceDone():
                _check_slice(self._runs.popleft(), message)
            case wire.SliceError():
                _check_failure(self._runs.popleft(), message)
            case wire.Idle():
                self._idle = True
            case wire.Beat() | wire.Building() | wire.Ending():
                pass
            case _:
                assert_never(message)

    def _is_owed(self, message: wire.WorkerMessage) -> bool:
        if self._idle or self._is_up == isinstance(message, wire.Hello):
            return False
        if self._last_word:
            return isinstance(message, wire.Idle) and self._stopped
        return isinstance(message, self._owed())

    def _owed(self) -> tuple[type[wire.WorkerMessage], ...]:
        """What it may say now, once it is up."""
        always = (wire.Hello, wire.Beat, wire.Idle) if self._stopped else (wire.Hello, wire.Beat)
        match self._order:
            case wire.Survey():
                return (*always, wire.Surveyed, wire.Refused)
            case wire.Build():
                return (*always, wire.Building, wire.Built, wire.Refused)
            case wire.Load():
                return (*always, wire.Loaded, wire.Refused)
            case None:
                return (*always, wire.Progress, wire.SliceDone, wire.SliceError) if self._runs else always
            case _:
                assert_never(self._order)


def _check_progress(run: wire.Run, message: wire.Progress) -> None:
    if message.index != run.index or message.done > run.last - run.first:
        raise WireError(f"it has done {message.done} items of slice {message.index}, which it was not asked for")


def _check_slice(run: wire.Run, message: wire.SliceDone) -> None:
    if (message.index, message.items) != (run.index, run.last - run.first) or message.failed_items > message.items:
        raise WireError(f"it answered slice {message.index} with {message.items} items, not what it was asked")


def _check_failure(run: wire.Run, message: wire.SliceError) -> None:
    if message.index != run.index:
        raise WireError(f"it failed at slice {message.index}, and was asked for slice {run.index}")
