"""The broker that is probed, and the certificates of those who talk to it there."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError
from agent.fleet.tls import TlsFiles
from hil.acl.visitor import PATIENCE_S, Visitor


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The broker, and who may talk to it. Without certificates (`None`) it is spoken to in plain text."""

    host: str
    port: int
    car: str
    victim: str
    dispatcher: str
    cell: str = "00"
    share_group: str = "dispatch"
    tls: tuple[TlsFiles, TlsFiles, TlsFiles] | None = None
    """Of the car, the victim and the dispatcher."""
    expired: TlsFiles | None = None
    """A certificate of the same CA, of a car, that has run out."""

    def up(self, unit: str, verb: str) -> str:
        """A topic of what a car sends."""
        return f"dw/v1/u/{self.cell}/{unit}/{verb}"

    def visit(
        self,
        name: str,
        tls: TlsFiles | None = None,
        *,
        will: tuple[str, bytes] | None = None,
        old_protocol: bool = False,
    ) -> Visitor:
        """A client with the certificate of `name`, unless another is given."""
        if tls is None and self.tls is not None:
            tls = self.tls[(self.car, self.victim, self.dispatcher).index(name)]
        return Visitor(self.host, self.port, name, tls, will=will, old_protocol=old_protocol)


def target_from_files(
    address: tuple[str, int],
    ca: Path,
    pairs: tuple[str, str, str],
    *,
    cell: str,
    share_group: str,
    expired: str | None = None,
) -> Target:
    """The target, from `CERTIFICATE:KEY` of car, victim and dispatcher, and of a car whose certificate has run out.

    Raises ConfigError for a file that is none, and for an expired certificate that is not.
    """
    files = tuple(_files(ca, pair) for pair in pairs)
    names = [_common_name(_certificate(one)) for one in files]
    if len(set(names)) != len(names):
        raise ConfigError(f"the certificates name {', '.join(names)}", hint="two different cars and a dispatcher")
    return Target(
        host=address[0],
        port=address[1],
        car=names[0],
        victim=names[1],
        dispatcher=names[2],
        cell=cell,
        share_group=share_group,
        tls=(files[0], files[1], files[2]),
        expired=None if expired is None else _run_out(_files(ca, expired)),
    )


def _files(ca: Path, pair: str) -> TlsFiles:
    certificate, colon, key = pair.partition(":")
    if not colon:
        raise ConfigError(f"{pair!r} is not CERTIFICATE:KEY", hint="two PEM files, with a colon between them")
    for path in (ca, Path(certificate), Path(key)):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
    return TlsFiles(ca=str(ca), certificate=certificate, key=key)


def _certificate(files: TlsFiles) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    except ValueError as error:
        raise ConfigError(f"{files.certificate} is no certificate in PEM: {error}") from error


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        raise ConfigError(
            f"the certificate of {certificate.subject.rfc4514_string()} has no common name",
            hint="a unit's certificate names it there",
        )
    return str(names[0].value)


def _run_out(files: TlsFiles) -> TlsFiles:
    ends = _certificate(files).not_valid_after_utc
    if ends > dt.datetime.now(dt.UTC):
        raise ConfigError(f"{files.certificate} is good until {ends}", hint="--expired takes one that has run out")
    return files


@contextmanager
def reachable(target: Target) -> Iterator[None]:
    """Raises ConfigError when there is no broker at all, so that this does not pass for a stopped attack."""
    try:
        with socket.create_connection((target.host, target.port), PATIENCE_S):
            yield
    except OSError as error:
        raise ConfigError(f"there is no broker at {target.host}:{target.port}: {error}") from error
