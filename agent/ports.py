"""What the shells offer each other: small protocols, so that each side can be replaced by an honest simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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
