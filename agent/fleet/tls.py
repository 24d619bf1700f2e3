"""Mutual TLS 1.3 with a private CA: files that may be rotated at any time, and sessions that are resumed.

The files are read at every connection, to the broker and for transfers alike, so a certificate that was renewed counts
at the next one, without a restart. While they stay the same, so does the context, and with it the broker's session:
resuming one costs both ends a third less (no certificates, no signatures), which is what limits a region whose cars
come back together. A session is offered until the broker's certificate would expire, for a day at most, and to the
broker that gave it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

SESSION_S = 24 * 3_600
CREDENTIAL = "credential:"


def credential(name: str) -> Path:
    """Where the service manager has put the credential `name` (systemd.exec, LoadCredential=); raises OSError."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise FileNotFoundError(f"credential {name!r}: the service manager gave this process none")
    if name in {"", ".", ".."} or "/" in name:
        raise FileNotFoundError(f"{name!r} is no credential's name")
    return Path(folder) / name


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mutual TLS: the private CA that signed the broker, and this unit's certificate and key (PEM files).

    A file may be named as `credential:NAME`: what the service manager unsealed for this service under that name.
    """

    ca: str
    certificate: str
    key: str

    def found(self, path: Callable[[str], Path]) -> TlsFiles:
        """These with their places, a plain name's being what `path` makes of it; raises OSError for a credential."""
        names = (self.ca, self.certificate, self.key)
        ca, certificate, key = (
            str(credential(one.removeprefix(CREDENTIAL)) if one.startswith(CREDENTIAL) else path(one)) for one in names
        )
        return TlsFiles(ca=ca, certificate=certificate, key=key)

    def context(self) -> ssl.SSLContext:
        """A TLS 1.3 context; raises OSError or ssl.SSLError when a file is missing or wrong."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        return context

    def digest(self) -> bytes:
        """Changes with the content of any of the files; raises OSError when one is missing."""
        whole = hashlib.sha256()
        for path in (self.ca, self.certificate, self.key):
            whole.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return whole.digest()


@dataclass(frozen=True, slots=True)
class _Session:
    """A session that a broker gave, and until when (wall time, since certificates expire by that) it is offered."""

    session: ssl.SSLSession
    until_s: float


class TlsFilesError(Exception):
    """The TLS files cannot be used; the text says why."""


class FreshContext:
    """A TLS context that follows its files. Use from any thread."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self._made: tuple[bytes, ssl.SSLContext] | None = None

    def now(self) -> ssl.SSLContext:
        """The context for the files as they are now, the same one while they are; raises TlsFilesError."""
        with self._lock:
            try:
                digest = self._files.digest()
                if self._made is None or self._made[0] != digest:
                    self._made = digest, self._files.context()
            except (OSError, ValueError) as error:
                raise TlsFilesError(f"the TLS files cannot be used: {error}") from error
            return self._made[1]


class TlsClient:
    """Makes TLS connections with these files. Lives as long as its link; use from one network thread at a time."""

    def __init__(self, files: TlsFiles) -> None:
        self._fresh = FreshContext(files)
        self._context: ssl.SSLContext | None = None
        self._sessions: dict[tuple[str, int], _Session] = {}

    def context(self) -> ssl.SSLContext:
        """The context for the files as they are now; raises TlsFilesError."""
        context = self._fresh.now()
        if context is not self._context:
            self._context, self._sessions = context, {}
        return context

    def wrap(
        self, context: ssl.SSLContext, raw: socket.socket, address: tuple[str, int], timeout_s: float
    ) -> ssl.SSLSocket:
        """A handshake over a connected socket, which is closed should it fail; raises OSError (ssl.SSLError) then."""
        known = self._sessions.pop(address, None)  # what fails with a session is tried without it
        offered = known.session if known is not None and time.time() < known.until_s else None
        raw.settimeout(timeout_s)
        try:
            return context.wrap_socket(raw, server_hostname=address[0], session=offered)
        except BaseException:
            raw.close()
            raise

    def keep_session(self, connection: ssl.SSLSocket, address: tuple[str, int]) -> None:
        """Keep the session of a connection that is about to be closed, if it can be resumed."""
        session, certificate = connection.session, connection.getpeercert()
        if connection.context is not self._context or session is None or not session.has_ticket or not certificate:
            return
        with contextlib.suppress(KeyError, ValueError):
            expires_s = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
            self._sessions[address] = _Session(session, min(expires_s, time.time() + SESSION_S))
