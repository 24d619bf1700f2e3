"""Holds the computer to a power limit by its own means, where its owner lets us: the GPU's clock, or the card's limit.

Pacing holds the computer to the same limit anyway, between micro-batches; these act within one, too. So whatever fails
here is told once and costs nothing but that. Nothing here waits on the event loop: a clock change takes milliseconds,
and only the newest wish counts.

What was found is put back: when the worker has gone, since the driver gets the whole computer back, unless somebody
else has changed it meanwhile; and after a crash at the next start. For that it is on disk before the first write. After
a reboot the platform has forgotten our limit by itself, and so do we. A limit is never set higher than what was found.

A limit in force may be the platform's own throttling rather than what anybody set (`Actuator`). So what is found while
the platform throttles is not believed: nothing is set until it has cooled down, and it is slow by itself meanwhile. And
what was put back is forgotten only when it is seen in force; until then the next run would put it back again.

`nvpmodel` is no such means: its modes are sets of clock caps with a name in watts, and some need a reboot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from agent.errors import DrivewayError
from agent.log import logger
from agent.tasks import finished

Tell = Callable[[str, dict[str, str | int | float | bool]], None]
"""Notes an event of the agent's life, by its name and with its fields."""

CLOSE_S = 2.0
COOL_LOOK_S = 2.0
"""How often to look whether the platform throttles no more, before the first write."""


class Actuator(Protocol):
    """One thing that can be limited. Blocking; every call may raise ComputerError (`agent.errors`)."""

    kind: str
    device: str

    def current(self) -> int:
        """The limit in force, in the actuator's own unit: what was set, or less while the platform throttles."""
        ...

    def throttled(self) -> bool:
        """Whether the platform says that it throttles, so that `current` may not be what was set."""
        ...

    def taken_over(self, written: int) -> bool:
        """Whether somebody else has set it since `written` was: what throttling explains is nobody's doing."""
        ...

    def value_for(self, limit_w: float, found: int) -> int:
        """The highest setting that keeps the computer under `limit_w`, and no higher than `found`."""
        ...

    def write(self, value: int) -> None:
        """Set it."""
        ...


class Remembered(msgspec.Struct, frozen=True):
    """What was found before the first write of this boot."""

    boot: str
    kind: str
    device: str
    found: int


class PowerLimits:
    """The one limit of this computer, in force only while there is a worker. Use on the event loop's thread.

    `make` makes the actuator when it is needed first (and again while that fails); None: every wish is ignored.
    """

    def __init__(self, make: Callable[[], Actuator] | None, file: Path, boot: str, tell: Tell) -> None:
        self._make, self._file, self._boot, self._tell = make, file, boot, tell
        self._actuator: Actuator | None = None
        self._found: int | None = None
        self._written: int | None = None
        self._limit_w: float | None = None
        self._working = False
        self._wished = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def want(self, limit_w: float) -> None:
        """Hold the computer to `limit_w` while there is a worker. Never raises."""
        self._limit_w = limit_w
        self._go()

    def worker_here(self, here: bool) -> None:  # noqa: FBT001 - says what it means
        """A worker begins, or has gone: then the computer is its other users' again, at its full clock."""
        self._working = here
        self._go()

    async def close(self) -> None:
        """Put back what was found."""
        self.worker_here(False)
        if self._task is not None:
            await finished((self._task,), CLOSE_S)

    @property
    def _wish_w(self) -> float | None:
        return self._limit_w if self._working else None

    def _go(self) -> None:
        self._wished.set()
        if self._make is not None and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._follow(self._make))

    async def _follow(self, make: Callable[[], Actuator]) -> None:
        """Set the newest wish until there is no newer one."""
        while True:
            wish_w = self._wish_w
            idle = wish_w is None and self._written is None
            self._wished.clear()
            set_now = True
            try:
                if wish_w is not None:
                    set_now = await asyncio.to_thread(self._set, make, wish_w)
                elif self._actuator is not None:
                    await asyncio.to_thread(self._put_back, self._actuator)
            except (DrivewayError, OSError) as error:
                self._told(str(error))
            else:
                if not idle:
                    self._told("")
            if not set_now:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wished.wait(), COOL_LOOK_S)
            elif wish_w == self._wish_w:
                return

    def _set(self, make: Callable[[], Actuator], limit_w: float) -> bool:
        """Set it; False when what was set before us cannot be known yet."""
        actuator = self._actuator = self._actuator or make()
        if self._found is None:
            self._found = self._remember(actuator)
        if self._found is None:
            return False
        value = actuator.value_for(limit_w, self._found)
        if value != self._written:
            actuator.write(value)
            self._written = value
        return True

    def _remember(self, actuator: Actuator) -> int | None:
        """What is set before we touch it, on disk; what an earlier run noted counts unless more is in force now.

        None while the platform throttles and nobody noted it before.
        """
        left = recall(self._file)
        if left is not None and (left.boot, left.kind, left.device) == (self._boot, actuator.kind, actuator.device):
            found = max(left.found, actuator.current())
            if found == left.found:
                return found
        elif actuator.throttled():
            return None
        else:
            found = actuator.current()
        fresh = self._file.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(Remembered(self._boot, actuator.kind, actuator.device, found)))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return found

    def _put_back(self, actuator: Actuator) -> None:
        if self._written is not None and actuator.taken_over(self._written):
            logger().info("power_limit_taken_over", device=actuator.device)
            self._file.unlink(missing_ok=True)
        elif self._found is not None:
            _restore(actuator, self._found, self._file)
        self._found = self._written = None

    def _told(self, problem: str) -> None:
        """Tell a failure once, and its end once."""
        if bool(problem) is not self._failing:
            self._failing = bool(problem)
            name = "power_limit_failed" if problem else "power_limit_works"
            self._tell(name, {"detail": problem} if problem else {})


def recall(file: Path) -> Remembered | None:
    """What an earlier run noted; None when there is nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Remembered)
    except (OSError, msgspec.DecodeError):
        return None


def restore_left_over(file: Path, boot: str, actuator_of: Callable[[str, str], Actuator]) -> None:
    """Put back what a run that crashed had found, whatever the configuration says now. Never raises.

    `actuator_of` makes the actuator of a kind and a device. A limit that somebody has raised meanwhile is left alone.
    """
    left = recall(file)
    try:
        if left is not None and left.boot == boot:
            actuator = actuator_of(left.kind, left.device)
            if _restore(actuator, left.found, file):
                logger().info("power_limit_restored", device=left.device, value=left.found)
        else:
            file.unlink(missing_ok=True)
    except (DrivewayError, OSError) as error:
        logger().warning("power_limit_not_restored", detail=str(error))


def _restore(actuator: Actuator, found: int, file: Path) -> bool:
    """Write back what was found, if less is in force; the note goes when it is seen there. Whether it was written."""
    lower = actuator.current() < found
    if lower:
        actuator.write(found)
    if not lower or actuator.current() >= found:
        file.unlink(missing_ok=True)
    return lower
