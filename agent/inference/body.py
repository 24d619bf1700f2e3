"""What a launcher needs of a worker's process, whoever started it: to see its end, to signal it, to hear its words.

A **child** is the daemon's own process (`agent.inference.child`). A worker that **systemd** started on a connection is
nobody's child here (`agent.inference.unit`): it is known once it has said Hello.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent.wire import Confinement


class Body(Protocol):
    """One process. Use on the event loop's thread; nothing here waits or raises, once it is made."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    @property
    def pidfd(self) -> int:
        """A descriptor of it: readable when it has ended."""
        ...

    @property
    def words(self) -> int:
        """A descriptor that its standard error is read from; it does not block."""
        ...

    @property
    def confinement(self) -> tuple[Confinement, ...]:
        """What shuts it in besides what it says itself."""
        ...

    def kill_rest(self) -> None:
        """End whatever it has started, as soon as that can be."""
        ...

    def status(self) -> int | None:
        """Of one that has ended: its exit status, negative for a signal; None where that is not known here."""
        ...

    def leave(self, then: Callable[[], None]) -> None:
        """It has ended: have nothing of it left, and call `then` on the loop."""
        ...

    def close(self) -> None:
        """Give its descriptors back."""
        ...
