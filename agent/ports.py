"""What the shells offer each other: small protocols, so that each side can be replaced by an honest simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from agent.core.events import EventType

Emit = Callable[[EventType], None]
"""Puts an event on the daemon's one queue. Call it on the event loop's thread only."""


class Clock(Protocol):
    """Where time comes from."""

    def boot_ms(self) -> int:
        """Milliseconds of CLOCK_BOOTTIME."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970, not to be trusted."""
        ...


class Source(Protocol):
    """Something that reads the vehicle or the computer and emits what it saw until it is closed."""

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled. Losses are events, not exceptions: it reconnects by itself."""
        ...


@runtime_checkable
class CountingSource(Source, Protocol):
    """A vehicle source that counts what it heard, and what it dropped and why."""

    @property
    def name(self) -> str:
        """What its events call it."""
        ...

    @property
    def counts(self) -> dict[str, int]:
        """Counts since the start, by reason; those that are zero may be missing."""
        ...


class Awakener(Protocol):
    """Asks the platform to stay awake: the only wish that the agent ever has of a vehicle, and off by default."""

    async def keep_awake(self, for_ms: int) -> None:
        """Wish to be kept awake for `for_ms` from now; 0 takes the wish back. Raises VehicleError."""
        ...


class Carrier(Protocol):
    """What carries messages to the fleet: one connection to a broker, lossy by contract."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        """Hand one message over; False when it cannot be taken now. True proves nothing.

        A message with a `token` is spoken of by it when the broker refuses it or hangs up over it.
        """
        ...

    def spread(self, spread_ms: int) -> None:
        """From now on the first attempt after an outage comes within so long, at random."""
        ...


class Signer(Protocol):
    """A private key that can be used and not read."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        ...

    @property
    def protection(self) -> str:
        """Where the key lives: `tpm`, `ftpm`, `pkcs11` or `file`."""
        ...

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        ...
