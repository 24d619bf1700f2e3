"""Which engine plans are missing, how often each was tried in vain, and the build that a worker is at: values."""

from __future__ import annotations

import msgspec

from agent.core.lease import Retry


class Build(msgspec.Struct, frozen=True):
    """The build that the worker is at; `outcome` is empty until something came of it."""

    begun_ms: int
    phase: str = ""
    done_permille: int = 0
    outcome: str = ""
    """`built` or `refused`, as the shell said; what ended without a word was `stopped` by us, or `failed`."""
    detail: str = ""
    plan_bytes: int = 0


class Builds(msgspec.Struct, frozen=True):
    """The packages (SHA-256) without a plan, and what was tried.

    `refused` packages are not tried again before the agent starts anew. `tries` counts the builds of a package since
    its plan was last seen to load, so that one that is built and lost, built and stale, does not go round in circles.
    """

    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    tries: dict[str, Retry] = {}

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
        return tuple(one for one in self.missing if one not in self.refused)

    def _not_before_ms(self, package_sha256: str) -> int:
        retry = self.tries.get(package_sha256)
        return 0 if retry is None else retry.not_before_ms
