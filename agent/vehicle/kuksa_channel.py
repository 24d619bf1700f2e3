"""How the databroker is reached: a channel that notices a dead peer, and a token that is read anew when it changes.

The broker sends no keepalives of its own, so a peer that hangs would be noticed by nobody: HTTP/2 pings every second,
and `grpc.http2.ping_timeout_ms` of 500, end its calls with UNAVAILABLE after 1.5 s (measured against a stopped broker).
Each channel keeps its own connection: shared ones would inherit the back-off of a channel that failed before.

A token is a short-lived JSON Web Token that somebody else renews in its file. It goes with every call; a failure to
read it, or the authority's certificate, is a reason why the databroker is lost, not the end of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio

from agent.errors import DrivewayError
from agent.vehicle.databroker import DatabrokerConfig

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
Metadata = tuple[tuple[str, str], ...]


class LostError(DrivewayError):
    """The databroker cannot be heard, and why; what stands before a colon is the same for the same cause."""


class Door:
    """The way to the databroker. `token_file` and `ca` are read when needed, since both are renewed while we run."""

    def __init__(self, target: str, token_file: Path | None = None, ca: Path | None = None, name: str = "") -> None:
        self._target, self._token_file, self._ca, self._name = target, token_file, ca, name
        self._metadata: Metadata = ()
        self._read_ns = 0

    @classmethod
    def of(cls, config: DatabrokerConfig, token_file: str, path: Callable[[str], Path]) -> Door:
        """The door that a configuration describes; `path` makes its paths absolute."""
        tls = config.tls
        return cls(
            config.address,
            path(token_file) if token_file else None,
            path(tls.ca) if tls else None,
            tls.server_name if tls else "",
        )

    def open(self) -> grpc.aio.Channel:
        """A new channel; nothing is sent yet. Raises LostError."""
        options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
        if self._target.startswith("unix:"):
            options.append(("grpc.default_authority", "localhost"))  # a path is no authority, and Rust's HTTP/2 minds
        if self._ca is None:
            return grpc.aio.insecure_channel(self._target, options)
        if self._name:
            options.append(("grpc.ssl_target_name_override", self._name))
        credentials = grpc.ssl_channel_credentials(_read(self._ca, "the databroker's authority"))
        return grpc.aio.secure_channel(self._target, credentials, options)

    def metadata(self) -> Metadata:
        """What goes with a call: the token, read anew when its file has changed. Raises LostError.

        A file that cannot be read just now (it is being replaced) leaves the token that we have in use.
        """
        if self._token_file is None:
            return self._metadata
        try:
            changed_ns = self._token_file.stat().st_mtime_ns
            if changed_ns != self._read_ns:
                self._metadata, self._read_ns = _bearer(self._token_file), changed_ns
        except (OSError, LostError) as error:
            if not self._metadata:
                raise LostError(f"cannot read the token: {error}") from error
        return self._metadata


def _bearer(token_file: Path) -> Metadata:
    token = _read(token_file, "the token").decode("ascii", "replace").strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise LostError(f"{token_file} holds no token")
    return (("authorization", f"Bearer {token}"),)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LostError(f"{what} cannot be read: {path} ({error.strerror})") from error


CAUSES = {
    grpc.StatusCode.UNAVAILABLE: "the databroker cannot be reached",
    grpc.StatusCode.UNAUTHENTICATED: "the databroker refuses the token (none, expired or foreign)",
    grpc.StatusCode.PERMISSION_DENIED: "the token may not read what it could read before",
    grpc.StatusCode.NOT_FOUND: "the databroker's list of leaves has changed",
    grpc.StatusCode.UNIMPLEMENTED: "this databroker does not speak kuksa.val.v2",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the databroker does not answer in time",
}


def cause(error: grpc.aio.AioRpcError) -> str:
    """A failed call as people may read it."""
    details = " ".join((error.details() or "").split())[:160]
    return f"{CAUSES.get(error.code(), f'the databroker answers {error.code().name}')}: {details}".rstrip(": ")
