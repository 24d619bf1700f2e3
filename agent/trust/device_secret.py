"""The device's own secret: 32 random bytes, made once, from which keys for its own use are derived.

Nobody else ever learns it, so what is authenticated with it was written by this device: another car's file, or one that
somebody put on the disk, does not pass. It does not guard against whoever is root here, who can read it. Each use gets
a key of its own (HMAC-SHA256 of the use's name), so that what one key authenticates means nothing under another.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Self

from agent.errors import TrustError
from agent.trust.keyfile import create_secret, read_secret

SECRET_BYTES = 32


class DeviceSecret:
    """The secret of this device; `repr` does not show it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def open_or_create(cls, path: Path) -> Self:
        """The secret in `path`, made now when there is none; raises TrustError when it is no secret, or not secret."""
        try:
            body = read_secret(path, most_bytes=SECRET_BYTES)
        except FileNotFoundError:
            create_secret(path, secrets.token_bytes(SECRET_BYTES))
            body = read_secret(path, most_bytes=SECRET_BYTES)
        except OSError as error:
            raise TrustError(f"the device's secret {path} cannot be read: {error.strerror}") from error
        if len(body) != SECRET_BYTES:
            raise TrustError(
                f"{path} holds {len(body)} bytes, not {SECRET_BYTES}",
                hint="delete it: a new one is made, and what it authenticated is made anew",
            )
        return cls(body)

    def key_for(self, use: str) -> bytes:
        """A 32-byte key for one use, named like `driveway/plan-cache/1`."""
        return hmac.digest(self._secret, use.encode("ascii"), "sha256")
