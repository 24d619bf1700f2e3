"""Carries the wish to stay awake to the platform, one at a time and the newest only; off unless it is configured.

The core repeats its wish while there is work, each time for a short while, so a wish that fails is made again by
itself: a failure is told once, and so is its end. When the daemon ends, what it still holds is let go of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.errors import DrivewayError
from agent.ports import Awakener
from agent.tasks import finished

CLOSE_S = 1.5

Note = Callable[[str, dict[str, str | int | float | bool]], None]
"""Tells of one event of the agent's life: its name and its fields."""


class KeepAwakeWishes:
    """The platform's ear, as the hands need it; without an awakener nothing is ever asked."""

    def __init__(self, awakener: Awakener | None, note: Note) -> None:
        self._awakener, self._note = awakener, note
        self._task: asyncio.Task[None] | None = None
        self._next_ms: int | None = None
        self._held = self._failing = False

    def want(self, for_ms: int) -> None:
        """Wish to be kept awake for `for_ms` from now; 0 lets go. Never waits, never raises."""
        if self._awakener is None:
            return
        self._next_ms = for_ms
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send(self._awakener), name="keep awake")

    async def close(self) -> None:
        """Let go, as far as there is time."""
        if self._held:
            self.want(0)
        if self._task is not None:
            await finished((self._task,), CLOSE_S)

    async def _send(self, awakener: Awakener) -> None:
        while self._next_ms is not None:
            for_ms, self._next_ms = self._next_ms, None
            self._held = for_ms > 0
            try:
                await awakener.keep_awake(for_ms)
            except Exception as error:  # noqa: BLE001 - what a platform's library raises must not end the wishes
                self._tell(failing=True, detail=str(error) if isinstance(error, DrivewayError) else repr(error))
            else:
                self._tell(failing=False)

    def _tell(self, *, failing: bool, detail: str = "") -> None:
        if failing is not self._failing:
            self._note("keep_awake_failed" if failing else "keep_awake_works", {"detail": detail} if failing else {})
        self._failing = failing
