"""Which engine plans are missing, how often each was tried in vain, and the build that a worker is at: values.

A build's age is the time in which it was let work: what is held by a gate, or paced to nothing for heat, does not age.
"""

from __future__ import annotations

import msgspec

from agent.core.lease import Retry

HELD_MAX_MS = 300_000
"""A build that rests keeps its memory, on the accelerator too; so long at most."""


class Build(msgspec.Struct, frozen=True):
    """The build that the worker is at; `outcome` is empty until something came of it."""

    begun_ms: int
    held_since_ms: int | None = None
    """Since when it rests; None while it is let work."""
    held_ms: int = 0
    """How long it has rested before that."""
    phase: str = ""
    done_permille: int = 0
    outcome: str = ""
    """`made`, `built`, `not_kept` or `refused`, as the shell said; without a word: `stopped` by us, or `failed`."""
    detail: str = ""
    plan_bytes: int = 0

    def paced(self, now_ms: int, *, held: bool) -> Build:
        """As it is from now on: resting, or let work."""
        if held == (self.held_since_ms is not None):
            return self
        if held:
            return msgspec.structs.replace(self, held_since_ms=now_ms)
        return msgspec.structs.replace(self, held_since_ms=None, held_ms=self.held_ms + self._resting_ms(now_ms))

    def age_ms(self, now_ms: int) -> int:
        """How long it was let work."""
        return now_ms - self.begun_ms - self.held_ms - self._resting_ms(now_ms)

    def rested_out(self, now_ms: int) -> bool:
        """Whether it has rested for longer than its memory is left to it."""
        return self._resting_ms(now_ms) > HELD_MAX_MS

    def due_ms(self, limit_ms: int) -> int:
        """When it has rested for too long or, being let work, is older than the limit, if nothing changes."""
        if self.held_since_ms is not None:
            return self.held_since_ms + HELD_MAX_MS + 1
        return self.begun_ms + self.held_ms + limit_ms + 1

    def _resting_ms(self, now_ms: int) -> int:
        return 0 if self.held_since_ms is None else now_ms - self.held_since_ms


class Keeping(msgspec.Struct, frozen=True):
    """A plan that was made and is on its way to the disk; its worker is gone."""

    package_sha256: str
    package: str
    build: Build


class Builds(msgspec.Struct, frozen=True):
    """The packages (SHA-256) without a plan, and what was tried.

    `refused` packages are not tried again before the agent starts anew. `tries` counts the builds of a package since
    its plan was last seen to load, so that one that is built and lost, built and stale, does not go round in circles.
    What is `keeping` is missing still, and not built again meanwhile.
    """

    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    tries: dict[str, Retry] = {}
    keeping: tuple[Keeping, ...] = ()

    def next(self, now_ms: int) -> str | None:
        """The package to build now; None where there is none, or each has to wait after its last try."""
        return next((one for one in self._wanted if now_ms >= self._not_before_ms(one)), None)

    def due_ms(self, now_ms: int) -> list[int]:
        """When the next waits are over."""
        waits = [self._not_before_ms(one) for one in self._wanted]
        return [at_ms for at_ms in waits if at_ms > now_ms]

    def tried(self, package_sha256: str, retry: Retry) -> Builds:
        """After one more try of a package."""
        return msgspec.structs.replace(self, tries=self.tries | {package_sha256: retry})

    def proven(self, package_sha256: str) -> Builds:
        """After a worker has loaded the package: its plan, where it needed one, is good."""
        if package_sha256 not in self.tries:
            return self
        tries = {name: retry for name, retry in self.tries.items() if name != package_sha256}
        return msgspec.structs.replace(self, tries=tries)

    @property
    def _wanted(self) -> tuple[str, ...]:
        kept = {one.package_sha256 for one in self.keeping}
        return tuple(one for one in self.missing if one not in self.refused and one not in kept)

    def _not_before_ms(self, package_sha256: str) -> int:
        retry = self.tries.get(package_sha256)
        return 0 if retry is None else retry.not_before_ms
