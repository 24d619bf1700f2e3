"""TLS 1.3 for those who come to the dispatcher: a certificate that may be renewed at any time, and whom it lets in.

The files are looked at with every connection, so a renewed certificate, or another client CA, counts from the next one
on. While they cannot be used (half of them renewed, say), the last ones that could go on, which is said once.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.errors import ConfigError

log = structlog.get_logger("dispatcher")


@dataclass(frozen=True, slots=True)
class ServerTlsFiles:
    """PEM files: the certificate with its chain, its key, and the CA that clients need a certificate of, or none."""

    certificate: str
    key: str
    client_ca: str = ""

    def context(self) -> ssl.SSLContext:
        """A context for servers; raises OSError (ssl.SSLError is one) when a file is missing or wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def seen(self) -> tuple[tuple[int, int, int], ...]:
        """Another one when a file was replaced or written to; raises OSError."""
        found = [Path(one).stat() for one in (self.certificate, self.key, self.client_ca) if one]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)


class ServerTls:
    """Follows the files. Use from any thread. Raises ConfigError where they cannot be used to begin with."""

    def __init__(self, files: ServerTlsFiles) -> None:
        self._files, self._lock, self._complained = files, threading.Lock(), False
        try:
            self._seen, self._context = files.seen(), files.context()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the TLS files for cars cannot be used: {error}") from error

    def now(self) -> ssl.SSLContext:
        """The context for the files as they are, or as they last could be used."""
        with self._lock:
            try:
                seen = self._files.seen()
                if seen != self._seen:
                    self._context, self._seen = self._files.context(), seen
                    log.info("tls_files_renewed")
                self._complained = False
            except (OSError, ValueError) as error:
                if not self._complained:
                    log.warning("tls_files_unusable", error=str(error))
                self._complained = True
            return self._context
