"""A worker's control group on a thread of its own: the kernel may take its time over what is written there.

The event loop waits for none of it. What is asked for is done in its order, after the group has been made; the process
is reaped there too, and not before, since a process id that is free again could put a stranger into the group. A group
that cannot be made in time costs the worker nothing but what the group would have added, and that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

from agent.inference.cgroup import WorkerGroup, enclose
from agent.wire import Confinement

PENDING = Confinement("cgroup", "absent: it has not been made yet")


class Enclosure:
    """The group of one worker, to be. Use on the event loop's thread; nothing here waits or raises."""

    def __init__(self, pid: int, memory_mb: int | None) -> None:
        """Begin to make it; raises RuntimeError when there is no thread to be had."""
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[Callable[[WorkerGroup], bool]] = queue.SimpleQueue()
        self._group: WorkerGroup | None = None
        threading.Thread(target=self._work, args=(pid, memory_mb), name="worker-group", daemon=True).start()

    @property
    def confinement(self) -> tuple[Confinement, ...]:
        """What of it holds, and what is absent and why."""
        return (PENDING,) if self._group is None else self._group.confinement

    def kill(self) -> None:
        """End every process in the group, as soon as it is made."""

        def carry_out(group: WorkerGroup) -> bool:
            group.kill()
            return True

        self._orders.put(carry_out)

    def leave(self, reap: Callable[[], object], then: Callable[[], None]) -> None:
        """The worker has ended: reap it, kill what it left behind, remove the group; `then` is called on the loop."""

        def carry_out(group: WorkerGroup) -> bool:
            reap()
            group.kill()
            group.remove()
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                self._loop.call_soon_threadsafe(then)
            return False

        self._orders.put(carry_out)

    def _work(self, pid: int, memory_mb: int | None) -> None:
        self._group = group = enclose(pid, memory_mb)
        while self._orders.get()(group):
            pass
